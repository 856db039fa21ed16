//! Input files, named by a client.

use std::path::{Path, PathBuf};

use super::{FileError, expand_home};

/// Endings of names that are taken for sound. Films count, as their sound is played or cloned.
const AUDIO: [&str; 10] = ["wav", "mp3", "m4a", "aac", "ogg", "flac", "mp4", "avi", "mov", "wmv"];

/// Which files may be read.
#[derive(Debug, Clone)]
pub struct Inputs {
    base: PathBuf,
    relative: bool,
    confined: bool,
}

impl Inputs {
    /// Relative paths count from `base` if `relative`, and are errors otherwise. If `confined`, nothing outside of
    /// `base` is read: clients on other machines must not have files of this one sent or played.
    pub fn new(base: PathBuf, relative: bool, confined: bool) -> Inputs {
        Inputs { base, relative, confined }
    }

    /// The file of that name, of at most `limit` bytes.
    ///
    /// # Errors
    /// A path that does not name a file, or none that may be read.
    pub fn find(&self, path: &str, limit: u64) -> Result<PathBuf, FileError> {
        let named = || path.to_owned();
        let mut file = expand_home(path);
        if !file.is_absolute() {
            if !self.relative {
                return Err(FileError::Relative { path: named() });
            }
            file = self.base.join(file);
        }
        if self.confined && !self.is_below_base(&file) {
            return Err(FileError::NotShared { path: named() });
        }
        let metadata = file.metadata().map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => FileError::Absent { path: named() },
            _ => FileError::Read { path: named(), source },
        })?;
        if !metadata.is_file() {
            return Err(FileError::NotAFile { path: named() });
        }
        if metadata.len() > limit {
            return Err(FileError::TooLarge { path: named(), size: metadata.len(), limit });
        }
        Ok(file)
    }

    /// As [`Self::find`], for sound.
    ///
    /// # Errors
    /// Also a name that is not one of sound.
    pub fn find_audio(&self, path: &str, limit: u64) -> Result<PathBuf, FileError> {
        let file = self.find(path, limit)?;
        let ending = file.extension().and_then(|ending| ending.to_str()).map(str::to_ascii_lowercase);
        match ending {
            Some(ending) if AUDIO.contains(&ending.as_str()) => Ok(file),
            _ => Err(FileError::NotAudio { path: path.to_owned(), expected: AUDIO.join(", ") }),
        }
    }

    /// Links count as what they lead to. What does not exist is outside, so that nothing is learnt about it.
    fn is_below_base(&self, file: &Path) -> bool {
        match (self.base.canonicalize(), file.canonicalize()) {
            (Ok(base), Ok(file)) => file.starts_with(base),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_below_the_base_path_are_read_for_clients_elsewhere() {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().join("base");
        std::fs::create_dir(&base).unwrap();
        std::fs::write(base.join("in.mp3"), "x").unwrap();
        std::fs::write(folder.path().join("out.mp3"), "x").unwrap();
        let inputs = Inputs::new(base.clone(), true, true);
        assert_eq!(inputs.find_audio("in.mp3", 10).unwrap(), base.join("in.mp3"));
        let outside = folder.path().join("out.mp3");
        for path in ["../out.mp3", outside.to_str().unwrap(), "/etc/passwd", "absent.mp3"] {
            let error = inputs.find(path, 10).unwrap_err();
            assert!(matches!(error, FileError::NotShared { .. }), "{path}: {error}");
        }
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(&outside, base.join("link.mp3")).unwrap();
            assert!(matches!(inputs.find("link.mp3", 10), Err(FileError::NotShared { .. })));
        }
    }

    #[test]
    fn errors_say_what_is_wrong_with_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        std::fs::write(path("a.txt"), "12345").unwrap();
        let inputs = Inputs::new(folder.path().to_owned(), false, false);
        let error = |path: &str| inputs.find_audio(path, 4).unwrap_err().to_string();
        assert!(error("a.txt").contains("relative path"));
        assert!(error(&path("b.mp3")).contains("does not exist"));
        assert!(error(&path("")).contains("is not a file"));
        assert!(error(&path("a.txt")).contains("has 5 bytes, more than the 4"));
        assert!(inputs.find_audio(&path("a.txt"), 5).unwrap_err().to_string().contains("not an audio file"));
    }
}
