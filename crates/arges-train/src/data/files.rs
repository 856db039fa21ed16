//! The files of a source, and their records by position in an endless, perhaps shuffled, sequence.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::jsonl::JsonLines;
use super::order::Permutation;
use super::parquet::ParquetFile;
use super::{DataError, Record, RecordPlace, mix};

/// Records of files. An epoch goes through the blocks in random order, and through the records of each block in
/// random order. Lines can be read anywhere and are all one block; a Parquet file is decoded a row group at a time,
/// and each group is a block.
pub struct FileRecords {
    files: Files,
    blocks: Vec<Block>,
    records: u64,
    /// Key of the order; `None` keeps that of the files.
    shuffle: Option<u64>,
    field: String,
    conversations: bool,
    plan: EpochPlan,
}

enum Files {
    Json(Vec<JsonLines>),
    Parquet { files: Vec<ParquetFile>, group: Option<DecodedGroup> },
}

/// The row group that was decoded last.
struct DecodedGroup {
    block: usize,
    rows: Vec<Value>,
}

/// Records that are shuffled among each other.
#[derive(Debug, Clone, Copy)]
struct Block {
    file: usize,
    group: usize,
    records: u64,
}

/// The order of the blocks in one epoch, with the place in it of each block's first record.
struct EpochPlan {
    epoch: u64,
    order: Vec<usize>,
    starts: Vec<u64>,
}

impl EpochPlan {
    fn new(epoch: u64, blocks: &[Block], shuffle: Option<u64>) -> Self {
        let count = blocks.len() as u64;
        let order: Vec<usize> = match shuffle.map(|key| Permutation::new(count, mix(&[key, epoch]))) {
            Some(order) => (0..count).map(|place| order.at(place) as usize).collect(),
            None => (0..blocks.len()).collect(),
        };
        let mut next = 0;
        let starts = order.iter().map(|block| {
            next += blocks[*block].records;
            next - blocks[*block].records
        });
        let starts = starts.collect();
        Self { epoch, order, starts }
    }
}

impl FileRecords {
    /// Opens the files and counts their records.
    pub fn open(
        paths: &[PathBuf],
        field: &str,
        conversations: bool,
        shuffle: Option<u64>,
    ) -> Result<Self, DataError> {
        let (parquet, json): (Vec<PathBuf>, Vec<PathBuf>) =
            expand(paths)?.into_iter().partition(|path| extension(path) == Some("parquet"));
        if let (Some(path), false) = (parquet.first(), json.is_empty()) {
            let reason = "a source is of Parquet files or of JSONL files, not of both".to_owned();
            return Err(DataError::Path { path: path.clone(), reason });
        }
        let first = parquet.iter().chain(&json).next().cloned().unwrap_or_default();
        let (files, blocks) = match parquet.is_empty() {
            true => open_json(&json)?,
            false => open_parquet(&parquet, field, conversations)?,
        };
        let records = blocks.iter().map(|block| block.records).sum();
        if records == 0 {
            let reason = "there is no record in it, nor in any other file of the source".to_owned();
            return Err(DataError::Path { path: first, reason });
        }
        let plan = EpochPlan::new(0, &blocks, shuffle);
        Ok(Self { files, blocks, records, shuffle, field: field.to_owned(), conversations, plan })
    }

    /// Records of one epoch, at least one.
    pub fn len(&self) -> u64 {
        self.records
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        match &self.files {
            Files::Json(files) => files.iter().map(JsonLines::bytes).sum(),
            Files::Parquet { files, .. } => files.iter().map(ParquetFile::bytes).sum(),
        }
    }

    /// The record at a position of the endless sequence.
    pub fn read(&mut self, position: u64) -> Result<Record, DataError> {
        let (block, place) = self.locate(position);
        let (file, number, object) = match &mut self.files {
            Files::Json(files) => {
                let (file, line) = nth_line(files, place);
                let object = files[file].read(line)?;
                (file, line, object)
            }
            Files::Parquet { files, group } => {
                let Block { file, group: index, .. } = self.blocks[block];
                if group.as_ref().is_none_or(|group| group.block != block) {
                    *group = None;
                    *group = Some(DecodedGroup { block, rows: files[file].read_group(index)? });
                }
                let row = group.as_ref().and_then(|group| group.rows.get(place as usize)).cloned();
                let object = row.ok_or_else(|| "is missing from its row group".to_owned());
                (file, files[file].first_row(index) + place, object)
            }
        };
        let record = object.and_then(|object| Record::from_object(object, &self.field, self.conversations));
        record.map_err(|reason| DataError::Record { place: self.place_in(file, number), reason })
    }

    /// The block of a position, and the place in it.
    fn locate(&mut self, position: u64) -> (usize, u64) {
        let (epoch, place) = (position / self.records, position % self.records);
        if self.plan.epoch != epoch {
            self.plan = EpochPlan::new(epoch, &self.blocks, self.shuffle);
        }
        let turn = self.plan.starts.partition_point(|start| *start <= place) - 1;
        let (block, place) = (self.plan.order[turn], place - self.plan.starts[turn]);
        let key = self.shuffle.map(|key| mix(&[key, epoch, block as u64]));
        let records = self.blocks[block].records;
        (block, key.map_or(place, |key| Permutation::new(records, key).at(place)))
    }

    /// The file of a record and its line or row there, for messages.
    pub fn place(&mut self, position: u64) -> RecordPlace {
        let (block, place) = self.locate(position);
        match &self.files {
            Files::Json(files) => {
                let (file, line) = nth_line(files, place);
                self.place_in(file, line)
            }
            Files::Parquet { files, .. } => {
                let Block { file, group, .. } = self.blocks[block];
                self.place_in(file, files[file].first_row(group) + place)
            }
        }
    }

    fn place_in(&self, file: usize, record: u64) -> RecordPlace {
        let (path, unit, number) = match &self.files {
            Files::Json(files) => (files[file].path(), "line", files[file].line_number(record)),
            Files::Parquet { files, .. } => (files[file].path(), "row", record + 1),
        };
        RecordPlace(format!("{}, {unit} {number}", path.display()))
    }
}

fn open_json(paths: &[PathBuf]) -> Result<(Files, Vec<Block>), DataError> {
    let files = paths.iter().map(|path| JsonLines::open(path)).collect::<Result<Vec<_>, _>>()?;
    let records = files.iter().map(JsonLines::len).sum();
    Ok((Files::Json(files), vec![Block { file: 0, group: 0, records }]))
}

fn open_parquet(
    paths: &[PathBuf],
    field: &str,
    conversations: bool,
) -> Result<(Files, Vec<Block>), DataError> {
    let columns: &[&str] = if conversations { &[field, "tools"] } else { &[field] };
    let open = |path: &PathBuf| ParquetFile::open(path, columns);
    let files = paths.iter().map(open).collect::<Result<Vec<_>, _>>()?;
    let blocks = files.iter().enumerate().flat_map(|(file, open)| {
        let groups = open.group_rows().enumerate();
        groups.map(move |(group, records)| Block { file, group, records })
    });
    let blocks = blocks.filter(|block| block.records > 0).collect();
    Ok((Files::Parquet { files, group: None }, blocks))
}

/// The file of a line, counted through all files, and its place in it.
fn nth_line(files: &[JsonLines], mut line: u64) -> (usize, u64) {
    let mut file = 0;
    while line >= files[file].len() {
        line -= files[file].len();
        file += 1;
    }
    (file, line)
}

fn extension(path: &Path) -> Option<&str> {
    path.extension().and_then(|extension| extension.to_str())
}

fn is_data(path: &Path) -> bool {
    matches!(extension(path), Some("json" | "jsonl" | "parquet"))
}

/// The files that paths stand for: those of a directory by name.
fn expand(paths: &[PathBuf]) -> Result<Vec<PathBuf>, DataError> {
    let mut files = Vec::new();
    for path in paths {
        if path.is_dir() {
            let mut found = directory_files(path)?;
            if found.is_empty() {
                let reason = "there is no .jsonl, .json or .parquet file in it".to_owned();
                return Err(DataError::Path { path: path.clone(), reason });
            }
            found.sort();
            files.append(&mut found);
        } else if is_data(path) {
            files.push(path.clone());
        } else {
            let reason = "is no .jsonl, .json or .parquet file".to_owned();
            return Err(DataError::Path { path: path.clone(), reason });
        }
    }
    Ok(files)
}

fn directory_files(directory: &Path) -> Result<Vec<PathBuf>, DataError> {
    let read = || -> std::io::Result<Vec<PathBuf>> {
        let entries = std::fs::read_dir(directory)?.map(|entry| Ok(entry?.path()));
        entries.filter(|path| path.as_ref().map_or(true, |path| path.is_file() && is_data(path))).collect()
    };
    read().map_err(|source| DataError::Read { path: directory.to_owned(), source })
}
