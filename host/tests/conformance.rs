//! Every store of this crate passes the core's suite.

mod places;

use places::{ByUrl, Directory, file_lock, lease_file};
use verrou::conformance;

conformance!(lease_files, Directory::new(lease_file));
conformance!(file_locks, Directory::new(file_lock));
conformance!(lease_urls, ByUrl::new("lease"));
