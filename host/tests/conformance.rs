//! Every store of this crate passes the core's suite.

mod places;

use places::{ByUrl, Directory, file_lock, hard_links, lease_file};
use verrou::conformance;

conformance!(lease_files, Directory::new(lease_file));
conformance!(file_locks, Directory::new(file_lock));
conformance!(hard_links_in_a_directory, Directory::new(hard_links));
conformance!(lease_urls, ByUrl::new("lease"));
conformance!(wasi_urls, ByUrl::new("wasi"));
