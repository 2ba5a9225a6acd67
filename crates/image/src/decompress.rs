//! Decompression by magic number, of the formats that kernels and modules come in.

use std::io::{self, Read};

/// How a piece of data is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// RFC 1952.
    Gzip,
    /// The .xz container, x86 branch filter included.
    Xz,
    /// RFC 8878.
    Zstd,
    /// The LZ4 tool's legacy format (`lz4 -l`), which the kernel uses.
    Lz4Legacy,
}

/// Data could not be decompressed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// None of the [`Format`]s.
    #[error("Compression not known (the data begins with {0:02x?}); gzip, xz, zstd and LZ4 are")]
    Unknown(Vec<u8>),
    /// Begins like `format`, but is damaged.
    #[error("Damaged {format:?} data")]
    Damaged {
        /// The format that the magic number names.
        format: Format,
        /// What the decoder says.
        source: io::Error,
    },
}

impl Format {
    /// Recognises the format by its first bytes.
    pub fn detect(data: &[u8]) -> Option<Self> {
        match data {
            [0x1f, 0x8b, ..] => Some(Self::Gzip),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some(Self::Xz),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Self::Zstd),
            [0x02, 0x21, 0x4c, 0x18, ..] => Some(Self::Lz4Legacy),
            _ => None,
        }
    }
}

/// Decompresses one stream. Bytes after its end are ignored: the kernel's build
/// appends the uncompressed size to what it compresses.
pub fn decompress(data: &[u8]) -> Result<Vec<u8>, Error> {
    let format =
        Format::detect(data).ok_or_else(|| Error::Unknown(data[..data.len().min(6)].to_vec()))?;
    let mut out = Vec::new();
    match format {
        Format::Gzip => flate2::read::GzDecoder::new(data)
            .read_to_end(&mut out)
            .map(drop),
        Format::Xz => lzma_rust2::XzReader::new(data, false)
            .read_to_end(&mut out)
            .map(drop),
        Format::Zstd => ruzstd::decoding::StreamingDecoder::new(data)
            .map_err(io::Error::other)
            .and_then(|mut decoder| decoder.read_to_end(&mut out).map(drop)),
        Format::Lz4Legacy => lz4_legacy(&data[4..], &mut out),
    }
    .map_err(|source| Error::Damaged { format, source })?;
    Ok(out)
}

/// Blocks of `u32 compressed size, data`, each of 8 MiB uncompressed but the last.
fn lz4_legacy(mut data: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
    const BLOCK: usize = 8 << 20;
    while let Some((head, rest)) = data.split_first_chunk::<4>() {
        let size = u32::from_le_bytes(*head) as usize;
        if rest.is_empty() {
            break; // the appended size
        }
        let block = rest
            .get(..size)
            .ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "block is cut off"))?;
        let start = out.len();
        out.resize(start + BLOCK, 0);
        let length = lz4_flex::block::decompress_into(block, &mut out[start..])
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
        out.truncate(start + length);
        data = &rest[size..];
    }
    Ok(())
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use std::io::Write;

    /// Made-up payload, longer than any window that would hide a mistake in blocks.
    pub fn sample() -> Vec<u8> {
        (0..300_000u32)
            .flat_map(|i| (i / 7).to_le_bytes())
            .collect()
    }

    /// Compresses as the kernel's build does, appended size included.
    pub fn lz4_legacy_kernel(data: &[u8]) -> Vec<u8> {
        let mut out = vec![0x02, 0x21, 0x4c, 0x18];
        for block in data.chunks(8 << 20) {
            let packed = lz4_flex::block::compress(block);
            out.extend(u32::try_from(packed.len()).unwrap().to_le_bytes());
            out.extend(packed);
        }
        out.extend(u32::try_from(data.len()).unwrap().to_le_bytes());
        out
    }

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    /// Runs a compressor of the system; `None` when the machine lacks it.
    fn with_tool(tool: &str, args: &[&str], data: &[u8]) -> Option<Vec<u8>> {
        use std::process::{Command, Stdio};
        let mut child = Command::new(tool)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .ok()?;
        let mut stdin = child.stdin.take().unwrap();
        let data = data.to_vec();
        let writer = std::thread::spawn(move || stdin.write_all(&data).unwrap());
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        assert!(output.status.success(), "{tool} failed");
        Some(output.stdout)
    }

    #[test]
    fn gzip_and_lz4_round_trip() {
        assert_eq!(decompress(&gzip(&sample())).unwrap(), sample());
        assert_eq!(decompress(&lz4_legacy_kernel(&sample())).unwrap(), sample());
    }

    #[test]
    fn lz4_of_several_blocks() {
        let data = sample().repeat(8); // 9.6 MB: two blocks
        assert_eq!(decompress(&lz4_legacy_kernel(&data)).unwrap(), data);
    }

    #[test]
    fn xz_and_zstd_as_the_tools_write_them_with_appended_size() {
        for (tool, args) in [
            ("xz", &["--check=crc32", "--x86", "--lzma2"][..]),
            ("xz", &["-9"]),
            ("zstd", &["-19", "-c"]),
        ] {
            let Some(mut packed) = with_tool(tool, args, &sample()) else {
                println!("SKIPPED: no {tool} on this machine");
                continue;
            };
            packed.extend(u32::try_from(sample().len()).unwrap().to_le_bytes());
            assert!(decompress(&packed).unwrap() == sample(), "{tool} {args:?}");
        }
    }

    #[test]
    fn damage_is_told_from_the_unknown() {
        assert!(matches!(decompress(b"plain text"), Err(Error::Unknown(_))));
        let mut cut = gzip(&sample());
        cut.truncate(cut.len() / 2);
        assert!(matches!(
            decompress(&cut),
            Err(Error::Damaged {
                format: Format::Gzip,
                ..
            })
        ));
        let cut = &lz4_legacy_kernel(&sample())[..1000];
        assert!(matches!(
            decompress(cut),
            Err(Error::Damaged {
                format: Format::Lz4Legacy,
                ..
            })
        ));
    }
}
