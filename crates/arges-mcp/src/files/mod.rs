//! Files that tools write and read: output only below one folder, input by name.

mod error;
mod input;
mod name;
mod output;

pub use error::FileError;
pub use input::Inputs;
pub use name::file_name;
pub use output::{Folder, Partial};

use std::path::{Component, Path, PathBuf};

/// A path with a leading `~` replaced by the home directory.
pub(crate) fn expand_home(path: &str) -> PathBuf {
    let rest = match path.strip_prefix('~') {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => rest.trim_start_matches('/'),
        _ => return PathBuf::from(path),
    };
    match std::env::home_dir() {
        Some(home) => home.join(rest),
        None => PathBuf::from(path),
    }
}

/// A path without `.` and `..`, as if no part of it were a link.
fn normalised(path: &Path) -> PathBuf {
    let mut result = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                result.pop();
            }
            other => result.push(other),
        }
    }
    result
}
