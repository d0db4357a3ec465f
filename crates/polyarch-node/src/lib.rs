//! A server: replica, store and transport wired together
