//! A file that contains one number, which must survive a loss of power.

use std::fs::File;
use std::io;

use crc32c::crc32c;

use crate::os;

/// The first bytes of a file, which identify the kind of its number.
pub(crate) type Magic = [u8; 8];

pub(crate) const BYTES: usize = 24;

/// Returns the number in `file`, or `None` if it is not a complete file of this kind.
pub(crate) fn read(file: &File, magic: Magic) -> io::Result<Option<u64>> {
    let mut buffer = [0; BYTES + 1];
    let bytes = os::read_at(file, &mut buffer, 0)?;
    Ok(decode(magic, bytes))
}

/// Writes `number` to `file`. The number survives a loss of power after this has returned.
pub(crate) fn write(file: &File, magic: Magic, number: u64) -> io::Result<()> {
    put(file, magic, number)?;
    sync(file)
}

/// Writes `number` to `file` without a sync: a loss of power may undo the write.
pub(crate) fn put(file: &File, magic: Magic, number: u64) -> io::Result<()> {
    os::write_at(file, &encode(magic, number), 0)
}

/// Syncs the number in `file` to the disk.
pub(crate) fn sync(file: &File) -> io::Result<()> {
    mutant!(FencesNotOnDisk, Ok(()), file.sync_data())
}

/// Returns the contents of a file: magic, checksum of the rest, version, number. They are 24 bytes, which
/// lie within one sector.
pub(crate) fn encode(magic: Magic, number: u64) -> [u8; BYTES] {
    const VERSION: u32 = 1;

    let mut bytes = [0; BYTES];
    bytes[..8].copy_from_slice(&magic);
    bytes[12..16].copy_from_slice(&VERSION.to_le_bytes());
    bytes[16..].copy_from_slice(&number.to_le_bytes());
    let checksum = crc32c(&bytes[12..]);
    bytes[8..12].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

/// Returns whether `file` is as long as a file of this kind, and begins like one, whatever its number.
pub(crate) fn is_kind(file: &File, magic: Magic) -> io::Result<bool> {
    let mut buffer = [0; BYTES + 1];
    let bytes = os::read_at(file, &mut buffer, 0)?;
    Ok(bytes.len() == BYTES && bytes.starts_with(&magic))
}

/// Returns the number in `bytes`, if they are a result of [`encode`].
pub(crate) fn decode(magic: Magic, bytes: &[u8]) -> Option<u64> {
    let number = bytes.get(16..BYTES)?.try_into().ok()?;
    let number = u64::from_le_bytes(number);
    (*bytes == encode(magic, number)).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAGIC: Magic = *b"VERROU?\n";

    #[test]
    fn only_encoded_bytes_decode() {
        let bytes = encode(MAGIC, 4096);
        assert_eq!(decode(MAGIC, &bytes), Some(4096));
        assert_eq!(decode(*b"VERROU!\n", &bytes), None);
        for corrupt in 0..BYTES {
            for bit in 0..8 {
                let mut bytes = bytes;
                bytes[corrupt] ^= 1 << bit;
                assert_eq!(decode(MAGIC, &bytes), None, "byte {corrupt}, bit {bit}");
            }
        }
        for length in 0..BYTES {
            assert_eq!(decode(MAGIC, &bytes[..length]), None, "{length} bytes");
        }
        assert_eq!(decode(MAGIC, &[&bytes[..], &[0]].concat()), None);
    }
}
