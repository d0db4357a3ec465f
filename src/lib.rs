//! Polyarch.
