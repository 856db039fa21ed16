//! Where the files of a checkpoint come from: a directory, or memory.

use std::borrow::Cow;
use std::io;
use std::path::{Path, PathBuf};

use super::mapping::Mapping;

/// A file that is part of the program: its name, without a directory, and its bytes.
pub type StaticFile = (&'static str, &'static [u8]);

/// The files of a checkpoint.
pub(super) enum Files<'a> {
    Directory(&'a Path),
    /// `origin` stands for the directory in errors.
    Memory {
        origin: &'a Path,
        files: &'static [StaticFile],
    },
}

impl Files<'_> {
    /// The directory, or what stands for it.
    pub fn directory(&self) -> &Path {
        match self {
            Self::Directory(directory) => directory,
            Self::Memory { origin, .. } => origin,
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory().join(name)
    }

    pub fn exists(&self, name: &str) -> bool {
        match self {
            Self::Directory(directory) => directory.join(name).exists(),
            Self::Memory { files, .. } => in_memory(files, name).is_ok(),
        }
    }

    /// Bytes of a file.
    pub fn length(&self, name: &str) -> io::Result<u64> {
        match self {
            Self::Directory(directory) => Ok(std::fs::metadata(directory.join(name))?.len()),
            Self::Memory { files, .. } => Ok(in_memory(files, name)?.len() as u64),
        }
    }

    pub fn read(&self, name: &str) -> io::Result<Cow<'static, [u8]>> {
        match self {
            Self::Directory(directory) => std::fs::read(directory.join(name)).map(Cow::Owned),
            Self::Memory { files, .. } => in_memory(files, name).map(Cow::Borrowed),
        }
    }

    pub fn map(&self, name: &str) -> io::Result<Mapping> {
        match self {
            Self::Directory(directory) => Mapping::open(&directory.join(name)),
            Self::Memory { files, .. } => in_memory(files, name).map(Mapping::Static),
        }
    }
}

fn in_memory(files: &[StaticFile], name: &str) -> io::Result<&'static [u8]> {
    let found = files.iter().find(|(file, _)| *file == name);
    found.map(|(_, bytes)| *bytes).ok_or_else(|| io::ErrorKind::NotFound.into())
}
