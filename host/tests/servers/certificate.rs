//! What a server proves its name with.

use std::path::Path;
use std::process::Command;

/// A certificate for `localhost` that is its own authority, and its key: two files in `directory`.
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
