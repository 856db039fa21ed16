//! What belongs to a version, and whether it is all there.

use std::fs;
use std::io::{self, Read};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{MANIFEST_FILE, PublicationError, entries, read_error};

const FORMAT: &str = "arges-weights-1";
/// Longest manifest that is read.
const MAX_MANIFEST: u64 = 16 << 20;

/// The files of a version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    format: String,
    /// Number of the weights.
    pub version: u64,
    /// Whether they are all there.
    pub kind: Kind,
    /// What a delta is against.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<Base>,
    /// Every file but the manifest.
    pub files: Vec<File>,
}

/// How much of the weights a version holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// All.
    Full,
    /// What differs from another version.
    Delta,
}

/// The full version that a delta is against.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// Its number.
    pub version: u64,
    /// CRC-32C of its manifest, in hexadecimal.
    pub crc32c: String,
    /// How many deltas have been made against it, with this one.
    pub number: usize,
    /// Bytes of the changes before they were compressed.
    pub raw_bytes: u64,
}

/// A file of a version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// Its name, without directories.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// Its CRC-32C, in hexadecimal.
    pub crc32c: String,
}

impl Manifest {
    /// Of the files that a directory holds.
    pub(super) fn of(directory: &Path, version: u64, base: Option<Base>) -> Result<Self, PublicationError> {
        let kind = if base.is_some() { Kind::Delta } else { Kind::Full };
        let mut names = entries(directory)?;
        names.sort_unstable();
        let of = |name: String| {
            let path = directory.join(&name);
            let (bytes, crc32c) = sum(&path).map_err(read_error(&path))?;
            Ok(File { name, bytes, crc32c })
        };
        let files = names.into_iter().map(of).collect::<Result<_, PublicationError>>()?;
        Ok(Self { format: FORMAT.to_owned(), version, kind, base, files })
    }

    /// Its text.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(self).expect("a manifest has string keys")
    }

    /// Reads the text of a manifest, which comes from elsewhere.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let manifest: Self = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        if manifest.format != FORMAT {
            return Err(format!("its format is {:?} and not {FORMAT:?}", manifest.format));
        }
        if (manifest.kind == Kind::Delta) != manifest.base.is_some() {
            return Err("a delta, and nothing else, has a base".to_owned());
        }
        let is_plain = |name: &str| {
            !name.is_empty()
                && !name.starts_with('.')
                && !name.contains(['/', '\\', '\0'])
                && name != MANIFEST_FILE
        };
        match manifest.files.iter().find(|file| !is_plain(&file.name)) {
            Some(file) => Err(format!("{:?} is not the name of a file of a version", file.name)),
            None => Ok(manifest),
        }
    }

    /// Reads the manifest of a directory; also its CRC-32C.
    ///
    /// # Errors
    /// A file that is not there or is no manifest.
    pub fn read(directory: &Path) -> Result<(Self, String), PublicationError> {
        let file = directory.join(MANIFEST_FILE);
        let mut text = Vec::new();
        fs::File::open(&file)
            .and_then(|opened| opened.take(MAX_MANIFEST).read_to_end(&mut text))
            .map_err(read_error(&file))?;
        match Self::parse(&text) {
            Ok(manifest) => Ok((manifest, hex(crc32c::crc32c(&text)))),
            Err(reason) => Err(PublicationError::Malformed { file, reason }),
        }
    }

    /// Checks that the directory holds the files of the manifest and no others; with `sums`, that they hold what was
    /// published.
    ///
    /// # Errors
    /// The first file that does not.
    pub fn check(&self, directory: &Path, sums: bool) -> Result<(), PublicationError> {
        for name in entries(directory)? {
            if name != MANIFEST_FILE && self.files.iter().all(|file| file.name != name) {
                return Err(PublicationError::Unlisted { file: directory.join(name) });
            }
        }
        self.files.iter().try_for_each(|file| check_file(&directory.join(&file.name), file, sums))
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }
}

/// Holds a file against what its manifest says.
///
/// # Errors
/// Another length, or with `sum` another checksum.
pub fn check_file(path: &Path, expected: &File, with_sum: bool) -> Result<(), PublicationError> {
    let found = fs::metadata(path).map_err(read_error(path))?.len();
    if found != expected.bytes {
        return Err(PublicationError::Length { file: path.to_owned(), expected: expected.bytes, found });
    }
    if with_sum {
        let (_, found) = sum(path).map_err(read_error(path))?;
        if found != expected.crc32c {
            let expected = expected.crc32c.clone();
            return Err(PublicationError::Checksum { file: path.to_owned(), expected, found });
        }
    }
    Ok(())
}

/// Length and CRC-32C of a file.
fn sum(path: &Path) -> io::Result<(u64, String)> {
    let mut file = fs::File::open(path)?;
    let mut block = vec![0; 1 << 20];
    let (mut bytes, mut crc) = (0, 0);
    loop {
        match file.read(&mut block)? {
            0 => return Ok((bytes, hex(crc))),
            n => {
                bytes += n as u64;
                crc = crc32c::crc32c_append(crc, &block[..n]);
            }
        }
    }
}

fn hex(crc: u32) -> String {
    format!("{crc:08x}")
}
