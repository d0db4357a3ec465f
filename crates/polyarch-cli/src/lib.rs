//! The commands of the polyarch binary
