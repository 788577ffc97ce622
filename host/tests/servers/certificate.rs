//! The certificate of a test server.

use std::path::Path;
use std::process::Command;

/// Creates a self-signed certificate for `localhost`, and its key: two files in `directory`.
pub(crate) fn certificate(directory: &Path) -> (String, String) {
    let at = |name: &str| directory.join(name).display().to_string();
    let (certificate, key) = (at("certificate.pem"), at("key.pem"));
    let mut openssl = Command::new("openssl");
    openssl.args([
        "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
    ]);
    openssl.args(["-subj", "/CN=localhost"]);
    openssl.args(["-addext", "subjectAltName=DNS:localhost"]);
    openssl.args(["-addext", "basicConstraints=critical,CA:FALSE"]);
    openssl.args(["-keyout", &key, "-out", &certificate]);
    let made = openssl.output().expect("openssl is installed");
    assert!(made.status.success(), "{made:?}");
    (certificate, key)
}
