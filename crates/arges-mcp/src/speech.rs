//! Speech made on this machine by espeak-ng, for trying the tools without a key.

use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

use crate::programs::{self, ProgramError};

/// Words a minute at speed 1.
const WORDS_A_MINUTE: f64 = 175.0;
/// Loudness at volume 1, of at most [`LOUDEST`].
const LOUDNESS: f64 = 100.0;
const LOUDEST: f64 = 200.0;
/// The synthesiser's pitch goes from 0 to 99 and MiniMax's from -12 to 12, in the middle at 0.
const PITCH: i64 = 50;
const PITCH_STEP: i64 = 4;

/// Languages that `language_boost` names, with the synthesiser's voice of each.
const LANGUAGES: [(&str, &str); 24] = [
    ("Chinese", "cmn"),
    ("Chinese,Yue", "yue"),
    ("English", "en"),
    ("Arabic", "ar"),
    ("Russian", "ru"),
    ("Spanish", "es"),
    ("French", "fr"),
    ("Portuguese", "pt"),
    ("German", "de"),
    ("Turkish", "tr"),
    ("Dutch", "nl"),
    ("Ukrainian", "uk"),
    ("Vietnamese", "vi"),
    ("Indonesian", "id"),
    ("Japanese", "ja"),
    ("Italian", "it"),
    ("Korean", "ko"),
    ("Thai", "th"),
    ("Polish", "pl"),
    ("Romanian", "ro"),
    ("Greek", "el"),
    ("Czech", "cs"),
    ("Finnish", "fi"),
    ("Hindi", "hi"),
];

/// Speech that could not be made.
#[derive(Debug, Error)]
pub enum SpeechError {
    /// There is no synthesiser.
    #[error(
        "espeak-ng is not installed (for example: apt install espeak-ng); \
         with MINIMAX_API_KEY set and without --backend local, MiniMax makes the speech"
    )]
    NotInstalled,
    /// A voice that it does not have.
    #[error("espeak-ng has no voice {voice:?}: list_voices names those there are")]
    NoVoice { voice: String },
    /// It failed.
    #[error(transparent)]
    Program(#[from] ProgramError),
}

/// What to say, and how, in the units of MiniMax's API.
#[derive(Debug, Clone)]
pub struct Utterance<'a> {
    pub text: &'a str,
    /// A voice of [`Synthesiser::voices`].
    pub voice: &'a str,
    /// 1 is usual.
    pub speed: f64,
    /// 1 is usual; from 2 up it is as loud as can be.
    pub volume: f64,
    /// From -12 to 12.
    pub pitch: i64,
}

/// A voice of the synthesiser.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Voice {
    /// What it is asked for by, such as `en-gb`.
    pub id: String,
    pub name: String,
    /// Languages that it speaks too; it is asked for by them as well.
    pub also: Vec<String>,
}

impl Voice {
    fn answers_to(&self, voice: &str) -> bool {
        self.id == voice || self.also.iter().any(|language| language == voice)
    }
}

/// The synthesiser of this machine.
#[derive(Debug)]
pub struct Synthesiser {
    program: PathBuf,
    limit: Duration,
}

impl Synthesiser {
    /// Looks for espeak-ng. It may take `limit` for a text.
    ///
    /// # Errors
    /// It is not installed.
    pub fn find(limit: Duration) -> Result<Synthesiser, SpeechError> {
        let program = programs::find(&["espeak-ng", "espeak"]).ok_or(SpeechError::NotInstalled)?;
        Ok(Synthesiser { program, limit })
    }

    /// The voices it has.
    ///
    /// # Errors
    /// A synthesiser that fails.
    pub async fn voices(&self) -> Result<Vec<Voice>, SpeechError> {
        let output = programs::run(&self.program, ["--voices"], "", self.limit).await?;
        Ok(parse_voices(&String::from_utf8_lossy(&output)))
    }

    /// Says something into a WAV file.
    ///
    /// # Errors
    /// A voice that is not there, and a synthesiser that fails.
    pub async fn speak(&self, utterance: &Utterance<'_>, file: &Path) -> Result<(), SpeechError> {
        let voice = utterance.voice;
        if !self.voices().await?.iter().any(|known| known.answers_to(voice)) {
            return Err(SpeechError::NoVoice { voice: voice.to_owned() });
        }
        let speed = (WORDS_A_MINUTE * utterance.speed).round();
        let volume = (LOUDNESS * utterance.volume).round().min(LOUDEST);
        let pitch = (PITCH + PITCH_STEP * utterance.pitch).clamp(0, 99);
        let settings = [
            ("-v", voice.to_owned()),
            ("-s", speed.to_string()),
            ("-a", volume.to_string()),
            ("-p", pitch.to_string()),
        ];
        let mut arguments: Vec<std::ffi::OsString> = vec!["--stdin".into(), "-w".into(), file.into()];
        for (flag, value) in settings {
            arguments.extend([flag.into(), value.into()]);
        }
        programs::run(&self.program, arguments, utterance.text, self.limit).await?;
        Ok(())
    }
}

/// The voice of a language as `language_boost` names it; English for others.
pub fn voice_of_language(language: &str) -> &'static str {
    LANGUAGES.iter().find(|(name, _)| *name == language).map_or("en", |(_, voice)| voice)
}

/// The table that `espeak-ng --voices` prints: priority, language, age and gender, name, file, others.
fn parse_voices(table: &str) -> Vec<Voice> {
    let lines = table.lines().skip(1);
    lines
        .filter_map(|line| {
            let mut columns = line.split_whitespace();
            let id = columns.nth(1)?.to_owned();
            let name = columns.nth(1)?.replace('_', " ");
            // The file, and then as `(en 2)` each.
            let also = columns.filter_map(|column| column.strip_prefix('(')).map(str::to_owned).collect();
            Some(Voice { id, name, also })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_voices_is_read() {
        let table = "Pty Language       Age/Gender VoiceName          File                 Other Languages\n \
                     5  af              --/M      Afrikaans          gmw/af               \n \
                     2  en-gb           --/M      English_(Great_Britain) gmw/en           (en 2)\n";
        let voice = |id: &str, name: &str, also: &[&str]| Voice {
            id: id.into(),
            name: name.into(),
            also: also.iter().map(|language| (*language).to_owned()).collect(),
        };
        assert_eq!(
            parse_voices(table),
            [voice("af", "Afrikaans", &[]), voice("en-gb", "English (Great Britain)", &["en"])]
        );
    }
}
