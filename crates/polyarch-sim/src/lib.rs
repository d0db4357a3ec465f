//! A seeded simulator of whole clusters
