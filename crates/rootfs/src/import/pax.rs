//! Extended headers: records about the entry that follows them.

use super::tar::TarError;

/// What a pax header says about the entry that follows it.
#[derive(Debug, Default)]
pub(super) struct Records {
    pub(super) path: Option<Vec<u8>>,
    pub(super) target: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) mtime: Option<(i64, u32)>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Records {
    pub(super) fn parse(mut bytes: &[u8]) -> Result<Self, TarError> {
        let bad = || TarError::Header("a malformed extended header");
        let mut records = Self::default();
        while !bytes.is_empty() {
            // `<length> <key>=<value>\n`, where the length counts itself too.
            let blank = bytes.iter().take(8).position(|byte| *byte == b' ');
            let blank = blank.ok_or_else(bad)?;
            let length: usize = parse(&bytes[..blank]).ok_or_else(bad)?;
            if length <= blank + 1 || length > bytes.len() || bytes[length - 1] != b'\n' {
                return Err(bad());
            }
            let (record, rest) = bytes.split_at(length);
            bytes = rest;
            let record = &record[blank + 1..length - 1];
            let equals = record.iter().position(|byte| *byte == b'=');
            let (key, value) = record.split_at(equals.ok_or_else(bad)?);
            let value = &value[1..];
            match key {
                b"path" => records.path = Some(value.to_vec()),
                b"linkpath" => records.target = Some(value.to_vec()),
                b"size" => records.size = Some(parse(value).ok_or_else(bad)?),
                b"uid" => records.uid = Some(parse(value).ok_or_else(bad)?),
                b"gid" => records.gid = Some(parse(value).ok_or_else(bad)?),
                b"mtime" => records.mtime = Some(time(value).ok_or_else(bad)?),
                _ => {
                    if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                        records.xattrs.push((name.to_vec(), value.to_vec()));
                    }
                }
            }
        }
        Ok(records)
    }
}

fn parse<T: std::str::FromStr>(digits: &[u8]) -> Option<T> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// A decimal number of seconds, perhaps negative, perhaps with a fraction.
fn time(value: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(value).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    if fraction.len() > 9 || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let nanoseconds: u32 = format!("{fraction:0<9}").parse().ok()?;
    if text.starts_with('-') && nanoseconds > 0 {
        // The kernel counts nanoseconds upwards also before 1970.
        return Some((seconds.checked_sub(1)?, 1_000_000_000 - nanoseconds));
    }
    Some((seconds, nanoseconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_records_are_refused() {
        for bad in [
            "5 a=b\n", "99 a=b\n", "x a=b\n", "6 ab\n\n", "0 a=b\n", "-1 a=b\n",
        ] {
            assert!(Records::parse(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn times_before_1970_count_upwards() {
        assert_eq!(time(b"12"), Some((12, 0)));
        assert_eq!(time(b"12.5"), Some((12, 500_000_000)));
        assert_eq!(time(b"-0.25"), Some((-1, 750_000_000)));
        assert_eq!(time(b"-3"), Some((-3, 0)));
        for bad in ["", "x", "1.x", "1.0000000001", "1e5"] {
            assert_eq!(time(bad.as_bytes()), None, "{bad}");
        }
    }
}
