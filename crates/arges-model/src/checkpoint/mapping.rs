//! The bytes of a shard, most often a read-only memory mapping: the one place of this crate with
//! `unsafe` code.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;

use memmap2::Mmap;

/// The bytes of a file.
pub(super) enum Mapping {
    /// A part of the program.
    Static(&'static [u8]),
    File(MappedFile),
}

/// A file mapped into memory, read-only and shared with the page cache.
///
/// The file must not be cut short while it is mapped: the operating system then ends the process
/// with SIGBUS at the first access behind its new end. Checkpoints are replaced by renaming, which
/// leaves the mapped file whole.
pub(super) struct MappedFile {
    map: Mmap,
}

impl Mapping {
    pub fn open(path: &Path) -> io::Result<Mapping> {
        let file = File::open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
        }
        // SAFETY: the mapping is owned by this struct, lives as long as every slice it gives out, and
        // is only read as bytes, for which every bit pattern is valid. That the file is not changed
        // meanwhile is the contract stated above and at `Checkpoint::open`.
        let map = unsafe { Mmap::map(&file)? };
        Ok(Mapping::File(MappedFile { map }))
    }

    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Static(bytes) => bytes,
            Self::File(file) => &file.map,
        }
    }

    /// Lets the operating system take back the memory of these bytes; reading them again brings
    /// them back from the file. Ranges outside the file are ignored, as are parts of the program.
    pub fn release(&self, range: Range<usize>) {
        if let Self::File(file) = self {
            file.release(range);
        }
    }
}

impl MappedFile {
    fn release(&self, range: Range<usize>) {
        if range.start >= range.end || range.end > self.map.len() {
            return;
        }
        #[cfg(unix)]
        {
            // SAFETY: the range lies within the mapping, and the mapping is a read-only view of a
            // file: dropped pages are read from the file again with the same content.
            let outcome = unsafe {
                self.map.unchecked_advise_range(
                    memmap2::UncheckedAdvice::DontNeed,
                    range.start,
                    range.end - range.start,
                )
            };
            // A refusal leaves the pages resident, which is harmless.
            drop(outcome);
        }
    }
}
