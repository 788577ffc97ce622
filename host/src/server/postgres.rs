//! Locks on postgres.
