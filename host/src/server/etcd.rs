//! Locks on etcd.
