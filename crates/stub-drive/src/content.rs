//! The bytes of a stub.

/// Bytes of a stub file: one sector, whatever the id.
pub const SECTOR: usize = 512;

/// Sectors of a stub file, in the 512-byte unit of `/sys/block/*/size`. A slot of this size is empty.
pub const SECTORS: u64 = 1;

/// Longest id in bytes: its length is stored in one byte.
pub const MAX_ID: usize = 255;

const MAGIC: [u8; 8] = [0xd6, 0xf4, 0xd8, 0xf5, 0xd7, 0xb1, 0xb1, 0xb1];
const ID_START: usize = MAGIC.len() + 1;

/// An id that no drive can have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Drive id {id:?} must have 1 to 255 characters, each a letter, a digit or an underscore")]
pub struct InvalidId {
    /// The id that was given.
    pub id: String,
}

/// The first sector of a stub drive called `id`.
///
/// # Errors
/// [`InvalidId`] if Firecracker or the guest would not accept the id.
pub fn encode(id: &str) -> Result<[u8; SECTOR], InvalidId> {
    let invalid = || InvalidId { id: id.to_owned() };
    let length = u8::try_from(id.len()).map_err(|_| invalid())?;
    if !valid(id.as_bytes()) {
        return Err(invalid());
    }
    let mut sector = [0; SECTOR];
    sector[..MAGIC.len()].copy_from_slice(&MAGIC);
    sector[MAGIC.len()] = length;
    sector[ID_START..ID_START + id.len()].copy_from_slice(id.as_bytes());
    Ok(sector)
}

/// The drive id in `sector`, or `None` if this is not the start of a stub drive.
///
/// `sector` may be any bytes of any length: the content of a container's own disk is not trusted.
#[must_use]
pub fn parse(sector: &[u8]) -> Option<&str> {
    let rest = sector.strip_prefix(&MAGIC)?;
    let (&length, rest) = rest.split_first()?;
    let id = rest.get(..usize::from(length))?;
    if valid(id) {
        str::from_utf8(id).ok()
    } else {
        None
    }
}

/// Firecracker's alphabet for ids.
fn valid(id: &[u8]) -> bool {
    !id.is_empty()
        && id
            .iter()
            .all(|&byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_the_original_runtimes() {
        let sector = encode("MN2HE43UOVRDA").expect("a valid id");
        assert_eq!(
            sector[..22],
            *b"\xd6\xf4\xd8\xf5\xd7\xb1\xb1\xb1\x0dMN2HE43UOVRDA"
        );
        assert!(sector[22..].iter().all(|&byte| byte == 0));
        assert_eq!(parse(&sector), Some("MN2HE43UOVRDA"));
    }

    #[test]
    fn ids_up_to_the_longest_survive() {
        for length in 1..=MAX_ID {
            let id = "a".repeat(length);
            let sector = encode(&id).expect("a valid id");
            assert_eq!(parse(&sector), Some(id.as_str()));
        }
    }

    #[test]
    fn bad_ids_are_refused() {
        for id in ["", "a-b", "a/b", "ä", "a\0", &"a".repeat(256)] {
            assert!(encode(id).is_err(), "{id:?}");
        }
    }

    #[test]
    fn other_sectors_are_not_stubs() {
        let good = encode("drive_0").expect("a valid id");
        assert_eq!(parse(&[]), None);
        for end in 0..ID_START + "drive_0".len() {
            assert_eq!(parse(&good[..end]), None, "cut at {end}");
        }
        for (offset, value) in [(0, 0), (8, 0), (8, 255), (9, b'/'), (9, 0x80), (9, 0)] {
            let mut sector = good;
            sector[offset] = value;
            assert_eq!(parse(&sector), None, "{value} at {offset}");
        }
    }

    /// Whatever the bytes, the parser answers, and only with what [`encode`] could have written.
    #[test]
    fn any_bytes_are_parsed_safely() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        };
        let mut stubs = 0;
        for _ in 0..50_000 {
            let shape = random();
            let mut bytes = vec![0; usize::from(u16::from_le_bytes([shape[0], shape[1]])) % 600];
            for chunk in bytes.chunks_mut(8) {
                let noise = random();
                chunk.copy_from_slice(&noise[..chunk.len()]);
            }
            // Most random bytes fail at the magic: help them past it, and past the alphabet.
            if shape[2] & 1 == 0 && bytes.len() >= MAGIC.len() {
                bytes[..MAGIC.len()].copy_from_slice(&MAGIC);
            }
            if shape[2] & 2 == 0 {
                for byte in bytes.iter_mut().skip(ID_START) {
                    *byte = b'A' + *byte % 26;
                }
            }
            if let Some(id) = parse(&bytes) {
                stubs += 1;
                let again = encode(id).expect("a parsed id is a valid one");
                let length = ID_START + id.len();
                assert_eq!(again[..length], bytes[..length]);
            }
        }
        assert!(stubs > 1000, "only {stubs} inputs were stubs");
    }
}
