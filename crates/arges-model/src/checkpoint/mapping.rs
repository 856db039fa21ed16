//! Read-only memory mapping of a shard: the one place of this crate with `unsafe` code.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;

use memmap2::Mmap;

/// A file mapped into memory, read-only and shared with the page cache.
///
/// The file must not be cut short while it is mapped: the operating system then ends the process
/// with SIGBUS at the first access behind its new end. Checkpoints are replaced by renaming, which
/// leaves the mapped file whole.
pub(super) struct Mapping {
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
        Ok(Mapping { map })
    }

    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Lets the operating system take back the memory of these bytes; reading them again brings
    /// them back from the file. Ranges outside the file are ignored.
    pub fn release(&self, range: Range<usize>) {
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
