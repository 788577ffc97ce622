//! Every store of this crate passes the core's suite.

mod places;

use places::{Folder, file_lock, lease_file};
use verrou::conformance;

conformance!(lease_files, Folder::new(lease_file));
conformance!(file_locks, Folder::new(file_lock));
