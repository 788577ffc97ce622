//! Which cryptography is used: one for all servers, and no other.

/// Makes ring's what rustls uses, unless the program has chosen another.
pub(crate) fn install() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}
