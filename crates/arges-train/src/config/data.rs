//! Where the data comes from.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// One source of data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// What it holds.
    pub kind: DataKind,
    /// Name in metrics; by default the first file or task.
    #[serde(default)]
    pub name: Option<String>,
    /// Its share of the tokens, relative to the other sources' weights.
    #[serde(default = "one")]
    pub weight: f64,
    /// Files, JSONL (`.jsonl`, `.json`) or Parquet (`.parquet`); a directory stands for all of those in it. For
    /// kinds `text` and `messages`.
    #[serde(default)]
    pub paths: Vec<PathBuf>,
    /// Field or column that holds the text or the messages, where it is not called `text` or `messages`.
    #[serde(default)]
    pub field: Option<String>,
    /// Whether each pass over the files is in a new random order; otherwise all are in that of the files.
    #[serde(default = "yes")]
    pub shuffle: bool,
    /// Names of tasks, or `all`. For kind `tasks`.
    #[serde(default)]
    pub tasks: Vec<String>,
    /// Lowest and highest difficulty, from 1; each task's own range when absent. For kind `tasks`.
    #[serde(default)]
    pub difficulty: Option<[u32; 2]>,
    /// Share of solutions that show their thinking, where the task's solver gives it. For kind `tasks`; 1 when absent.
    #[serde(default)]
    pub thinking: Option<f64>,
}

fn one() -> f64 {
    1.0
}

fn yes() -> bool {
    true
}

impl DataConfig {
    /// The name in metrics and messages.
    pub fn display_name(&self) -> String {
        let file = || Some(self.paths.first()?.file_stem()?.to_string_lossy().into_owned());
        self.name.clone().or_else(file).or_else(|| self.tasks.first().cloned()).unwrap_or_default()
    }
}

/// What a source holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DataKind {
    /// Plain documents; every token is learned.
    Text,
    /// Conversations, `{"messages": […], "tools": […]}`, through the model's chat template.
    Messages,
    /// Conversations made on the fly from the tasks of `arges tasks`.
    Tasks,
}

/// Loss on data that is not trained on. It takes the first documents of each source in the order of the files; tasks
/// have seeds that training never takes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluationConfig {
    /// Steps from one evaluation to the next. The last step is always evaluated.
    pub every: u64,
    /// Most documents of each source; file sources that have fewer give all.
    #[serde(default = "default_documents")]
    pub documents: u64,
    /// The sources; `weight` and `shuffle` have no effect here.
    pub data: Vec<DataConfig>,
}

fn default_documents() -> u64 {
    200
}
