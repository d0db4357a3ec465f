//! The log, the memtable and the state
