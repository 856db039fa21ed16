//! Playing sound through a program of this machine.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

use crate::programs::{self, ProgramError};

/// Players in order of preference, with the arguments before the file.
const PLAYERS: [(&str, &[&str]); 4] = [
    ("ffplay", &["-nodisp", "-autoexit", "-loglevel", "error", "-i"]),
    ("mpv", &["--no-video", "--really-quiet", "--"]),
    ("play", &["-q"]),
    ("afplay", &[]),
];
/// A player of WAV files alone, which is there where nothing else is.
const WAV_PLAYER: &str = "aplay";

/// A file that could not be played.
#[derive(Debug, Error)]
pub enum PlayError {
    /// There is nothing to play it with.
    #[error("no player found: install ffplay (of ffmpeg), mpv or sox")]
    NoPlayer,
    /// The player failed.
    #[error(transparent)]
    Program(#[from] ProgramError),
}

/// Plays a file to its end, for `limit` at most. Dropping the future stops it.
///
/// # Errors
/// See [`PlayError`].
pub async fn play(file: &Path, limit: Duration) -> Result<(), PlayError> {
    let (player, mut arguments) = choose(file).ok_or(PlayError::NoPlayer)?;
    arguments.push(file.into());
    programs::run(&player, arguments, "", limit).await?;
    Ok(())
}

fn choose(file: &Path) -> Option<(PathBuf, Vec<OsString>)> {
    let known = PLAYERS.iter().find_map(|(name, arguments)| {
        let player = programs::find(&[name])?;
        Some((player, arguments.iter().map(OsString::from).collect()))
    });
    known.or_else(|| {
        let is_wav = file.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("wav"));
        programs::find(&[WAV_PLAYER]).filter(|_| is_wav).map(|player| (player, vec!["-q".into()]))
    })
}
