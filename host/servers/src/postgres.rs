//! Locks in a `PostgreSQL` database: each operation is a function there, which first locks the row of its name.
//!
//! `postgres/schema.sql` defines the functions and the tables. A release reserves the lock for the head waiter
//! for half a second, and notifies that waiter by NOTIFY; a waiter that does not acquire the lock in that time
//! loses its ticket. A process uses three connections at most for operations, and one to listen.

mod connect;
mod error;
mod schema;
mod statements;
mod queue;
mod store;

pub use store::PostgresStore;
