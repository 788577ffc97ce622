//! The cryptography of TLS: one provider for all servers.

/// Installs ring as the provider of rustls, unless the program has installed another.
pub(crate) fn install() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}
