//! Output files: below the base path, whole or not at all.

use std::io;
use std::path::{Path, PathBuf};

use chrono::Local;
use tempfile::{Builder, NamedTempFile};

use super::{FileError, expand_home, file_name, normalised};

/// Names tried for one file, where others have the same text and second.
const NAMES: usize = 10_000;

/// The base path, below which all output goes.
#[derive(Debug, Clone)]
pub struct Folder {
    base: PathBuf,
}

/// A file on its way. It gets its name once it is whole; dropped before, it is gone.
#[derive(Debug)]
pub struct Partial {
    temporary: NamedTempFile,
    folder: PathBuf,
    name: String,
}

impl Folder {
    /// The base path; a leading `~` is the home directory.
    ///
    /// # Errors
    /// A relative path where there is no current directory.
    pub fn new(base: &str) -> io::Result<Folder> {
        Ok(Folder { base: normalised(&std::path::absolute(expand_home(base))?) })
    }

    /// The base path itself, absolute.
    pub fn base(&self) -> &Path {
        &self.base
    }

    /// Begins a file in a folder below the base path, which is made if need be.
    ///
    /// # Errors
    /// A folder that is not below, by its name or through links, or cannot be made or written to.
    pub fn begin(
        &self,
        output_directory: Option<&str>,
        tool: &str,
        text: &str,
        whole_text: bool,
        extension: &str,
    ) -> Result<Partial, FileError> {
        let folder = self.make(output_directory)?;
        let failed = |source| FileError::Write { path: folder.clone(), source };
        let mut builder = Builder::new();
        builder.prefix(".arges-").suffix(".part");
        #[cfg(unix)]
        {
            // As any new file, and not for its owner alone as a temporary one.
            use std::os::unix::fs::PermissionsExt;
            builder.permissions(std::fs::Permissions::from_mode(0o666));
        }
        let temporary = builder.tempfile_in(&folder).map_err(failed)?;
        let name = file_name(tool, text, whole_text, extension, Local::now());
        Ok(Partial { temporary, folder, name })
    }

    /// Makes a folder below the base path if need be, and finds out whether files can be made in it.
    ///
    /// # Errors
    /// As [`Self::begin`].
    pub fn check(&self, output_directory: Option<&str>) -> Result<(), FileError> {
        self.begin(output_directory, "", "", false, "").map(drop)
    }

    fn make(&self, output_directory: Option<&str>) -> Result<PathBuf, FileError> {
        let directory = output_directory.unwrap_or("");
        let outside = || FileError::Outside { directory: directory.to_owned(), base: self.base.clone() };
        let folder = normalised(&self.base.join(expand_home(directory)));
        let failed = |source| FileError::Write { path: folder.clone(), source };
        std::fs::create_dir_all(&self.base).map_err(failed)?;
        let base = self.base.canonicalize().map_err(failed)?;
        // Neither dots nor links in the part that exists may lead out; below it only plain folders are made.
        let existing = folder.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(&self.base);
        if !existing.canonicalize().map_err(failed)?.starts_with(&base) {
            return Err(outside());
        }
        std::fs::create_dir_all(&folder).map_err(failed)?;
        Ok(folder)
    }
}

impl Partial {
    /// A handle to write with.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn writer(&self) -> Result<tokio::fs::File, FileError> {
        self.temporary.reopen().map(tokio::fs::File::from_std).map_err(|source| self.failed(source))
    }

    /// Writes all of the file.
    ///
    /// # Errors
    /// Those of the file system.
    pub async fn write(&self, bytes: &[u8]) -> Result<(), FileError> {
        use tokio::io::AsyncWriteExt;
        let mut file = self.writer()?;
        file.write_all(bytes).await.map_err(|source| self.failed(source))?;
        file.flush().await.map_err(|source| self.failed(source))
    }

    /// Where the file is while it has no name.
    pub fn path(&self) -> &Path {
        self.temporary.path()
    }

    /// Gives the file its name, or one with a number where that is taken, and returns its path.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn finish(self) -> Result<PathBuf, FileError> {
        let Partial { mut temporary, folder, name } = self;
        let (stem, extension) = name.rsplit_once('.').unwrap_or((&name, ""));
        for number in 1..=NAMES {
            let path = match number {
                1 => folder.join(&name),
                _ => folder.join(format!("{stem}_{number}.{extension}")),
            };
            match temporary.persist_noclobber(&path) {
                Ok(_) => return Ok(path),
                Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => temporary = error.file,
                Err(error) => return Err(FileError::Write { path, source: error.error }),
            }
        }
        let source = io::Error::from(io::ErrorKind::AlreadyExists);
        Err(FileError::Write { path: folder.join(&name), source })
    }

    fn failed(&self, source: io::Error) -> FileError {
        FileError::Write { path: self.folder.clone(), source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin(base: &Path, directory: Option<&str>) -> Result<Partial, FileError> {
        Folder::new(base.to_str().unwrap()).unwrap().begin(directory, "t2a", "x", false, "mp3")
    }

    #[test]
    fn folders_are_made_below_the_base_path_however_deep() {
        let home = tempfile::tempdir().unwrap();
        let base = home.path().join("not/yet/there");
        let path = begin(&base, Some("a/b/c")).unwrap().finish().unwrap();
        assert_eq!(path.parent().unwrap(), base.join("a/b/c"));
        let absolute = base.join("d");
        let path = begin(&base, absolute.to_str()).unwrap().finish().unwrap();
        assert_eq!(path.parent().unwrap(), absolute);
        let path = begin(&base, Some("a/../e/.")).unwrap().finish().unwrap();
        assert_eq!(path.parent().unwrap(), base.join("e"));
    }

    #[test]
    fn nothing_is_written_outside_of_the_base_path() {
        let home = tempfile::tempdir().unwrap();
        let base = home.path().join("base");
        std::fs::create_dir(&base).unwrap();
        for directory in ["..", "../other", "a/../../other", "/tmp", "~", home.path().to_str().unwrap()] {
            let error = begin(&base, Some(directory)).unwrap_err();
            assert!(matches!(error, FileError::Outside { .. }), "{directory}: {error}");
        }
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(home.path(), base.join("link")).unwrap();
            let error = begin(&base, Some("link/new")).unwrap_err();
            assert!(matches!(error, FileError::Outside { .. }), "{error}");
        }
        assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 1);
    }

    #[test]
    fn files_of_one_second_do_not_replace_each_other() {
        let base = tempfile::tempdir().unwrap();
        let paths: std::collections::HashSet<PathBuf> =
            (0..50).map(|_| begin(base.path(), None).unwrap().finish().unwrap()).collect();
        assert_eq!(paths.len(), 50);
    }

    #[test]
    fn a_file_that_is_not_finished_is_gone() {
        let base = tempfile::tempdir().unwrap();
        drop(begin(base.path(), None).unwrap());
        assert_eq!(std::fs::read_dir(base.path()).unwrap().count(), 0);
    }
}
