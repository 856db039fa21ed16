//! Writing a checkpoint that this crate and transformers can load.
//!
//! Everything is planned from the configuration before the first byte, so that tensors can be
//! written in any order, row by row, straight to their place on disk. Shards carry temporary names
//! until all are complete; the file that makes the directory a checkpoint (the index, or the single
//! weight file) comes last. A crash leaves either the old state or no checkpoint, never half of one.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::json;

use super::error::WriteError;
use super::header::LENGTH_BYTES;
use super::shards::{INDEX_FILE, SINGLE_FILE};
use crate::config::Config;
use crate::dtype::DType;
use crate::params::Param;

/// Size of a shard where nothing else is asked for: 5 GB, as transformers writes them.
pub const DEFAULT_SHARD_BYTES: u64 = 5_000_000_000;
/// Tensor data begin at a multiple of this in each file.
const DATA_ALIGNMENT: usize = 64;
/// Ending of files that are not complete yet.
const PARTIAL: &str = ".partial";

/// How a checkpoint is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteOptions {
    /// Most bytes of tensor data in one shard; a larger tensor has a shard of its own.
    pub shard_bytes: u64,
    /// Whether the directory may hold files already. A checkpoint in it is replaced.
    pub overwrite: bool,
}

impl Default for WriteOptions {
    fn default() -> Self {
        WriteOptions { shard_bytes: DEFAULT_SHARD_BYTES, overwrite: false }
    }
}

/// A checkpoint being written. Dropping it without [`CheckpointWriter::finish`] removes what was
/// written and leaves the directory as it was.
pub struct CheckpointWriter {
    directory: PathBuf,
    config: Config,
    shards: Vec<ShardFile>,
    tensors: HashMap<Param, Slot>,
    finished: bool,
}

struct ShardFile {
    path: PathBuf,
    names: Vec<String>,
    unwritten: usize,
}

/// Where a tensor goes.
struct Slot {
    shard: usize,
    offset: u64,
    bytes: u64,
    dtype: DType,
    state: SlotState,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum SlotState {
    Empty,
    Begun,
    Written,
}

impl CheckpointWriter {
    /// Plans the checkpoint and creates its shards under temporary names. `dtype_of` chooses how
    /// each parameter is stored; the embedding's choice becomes the configuration's
    /// [`Config::stored_dtype`]. A missing directory is created.
    pub fn create(
        directory: &Path,
        config: &Config,
        options: WriteOptions,
        dtype_of: impl Fn(Param) -> DType,
    ) -> Result<CheckpointWriter, WriteError> {
        config.validate(&directory.join("config.json"))?;
        fs::create_dir_all(directory).map_err(write_error(directory))?;
        if !options.overwrite && !is_empty(directory)? {
            return Err(WriteError::NotEmpty { directory: directory.to_owned() });
        }
        remove_partial_files(directory)?;
        let mut config = config.clone();
        config.stored_dtype = Some(dtype_of(Param::Embedding));
        let groups = group_into_shards(&config, options.shard_bytes, &dtype_of);
        let mut writer = CheckpointWriter {
            directory: directory.to_owned(),
            config,
            shards: Vec::with_capacity(groups.len()),
            tensors: HashMap::new(),
            finished: false,
        };
        for group in groups {
            writer.create_shard(group)?;
        }
        Ok(writer)
    }

    fn create_shard(&mut self, mut group: Vec<(Param, DType)>) -> Result<(), WriteError> {
        // Wider types first keep every tensor aligned to its own type.
        group.sort_by_key(|(_, dtype)| std::cmp::Reverse(dtype.size()));
        let (header, offsets) = shard_header(&self.config, &group);
        let shard = self.shards.len();
        let path = self.directory.join(format!(".model-{:05}.safetensors{PARTIAL}", shard + 1));
        let length = offsets.last().copied().unwrap_or(header.len() as u64);
        self.shards.push(ShardFile { path: path.clone(), names: Vec::new(), unwritten: group.len() });
        create_file(&path, &header, length).map_err(write_error(&path))?;
        for ((param, dtype), range) in group.into_iter().zip(offsets.windows(2)) {
            self.shards[shard].names.push(param.name(&self.config));
            let slot =
                Slot { shard, offset: range[0], bytes: range[1] - range[0], dtype, state: SlotState::Empty };
            self.tensors.insert(param, slot);
        }
        Ok(())
    }

    /// The configuration that will be written.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Bytes of all tensors.
    pub fn total_bytes(&self) -> u64 {
        self.tensors.values().map(|slot| slot.bytes).sum()
    }

    /// How the parameter is stored, if the model has it.
    pub fn dtype(&self, param: Param) -> Option<DType> {
        self.tensors.get(&param).map(|slot| slot.dtype)
    }

    /// Begins a parameter, whose rows then follow from first to last.
    pub fn begin(&mut self, param: Param) -> Result<TensorWriter<'_>, WriteError> {
        let tensor = param.name(&self.config);
        let slot = self.tensors.get_mut(&param).ok_or(WriteError::NoSuchParam { param })?;
        if slot.state != SlotState::Empty {
            return Err(WriteError::Twice { tensor });
        }
        slot.state = SlotState::Begun;
        let shard = &mut self.shards[slot.shard];
        let open = || -> io::Result<File> {
            let mut file = OpenOptions::new().write(true).open(&shard.path)?;
            file.seek(SeekFrom::Start(slot.offset))?;
            Ok(file)
        };
        let file = open().map_err(write_error(&shard.path))?;
        Ok(TensorWriter { tensor, slot, shard, file, written: 0, narrowed: Vec::new() })
    }

    /// Writes a whole parameter from f32, rounding to nearest even where it is stored narrower.
    pub fn write_f32(&mut self, param: Param, values: &[f32]) -> Result<(), WriteError> {
        let mut tensor = self.begin(param)?;
        tensor.write_f32(values)?;
        tensor.finish()
    }

    /// Writes a whole parameter from bytes of its stored type.
    pub fn write_bytes(&mut self, param: Param, bytes: &[u8]) -> Result<(), WriteError> {
        let mut tensor = self.begin(param)?;
        tensor.write_bytes(bytes)?;
        tensor.finish()
    }

    /// Gives the shards their names and writes the configuration and, where there are several, the
    /// index. Every parameter must have been written.
    pub fn finish(mut self) -> Result<(), WriteError> {
        self.check_complete()?;
        let count = self.shards.len();
        let names: Vec<String> = match count {
            1 => vec![SINGLE_FILE.into()],
            _ => (1..=count).map(|i| format!("model-{i:05}-of-{count:05}.safetensors")).collect(),
        };
        remove_old_checkpoint(&self.directory)?;
        let config = format!("{:#}\n", self.config.to_json());
        replace_file(&self.directory.join("config.json"), config.as_bytes())?;
        for (shard, name) in self.shards.iter().zip(&names) {
            let path = self.directory.join(name);
            fs::rename(&shard.path, &path).map_err(write_error(&path))?;
        }
        if count > 1 {
            let index = format!("{:#}\n", self.index(&names));
            replace_file(&self.directory.join(INDEX_FILE), index.as_bytes())?;
        }
        self.finished = true;
        sync_directory(&self.directory).map_err(write_error(&self.directory))
    }

    fn check_complete(&self) -> Result<(), WriteError> {
        let unwritten = Param::all(&self.config)
            .filter(|param| self.tensors.get(param).is_none_or(|slot| slot.state != SlotState::Written));
        let unwritten: Vec<Param> = unwritten.collect();
        match unwritten.first() {
            None => Ok(()),
            Some(param) => {
                Err(WriteError::Unwritten { tensor: param.name(&self.config), others: unwritten.len() - 1 })
            }
        }
    }

    fn index(&self, shard_names: &[String]) -> serde_json::Value {
        let mut weight_map = serde_json::Map::new();
        for (shard, file) in self.shards.iter().zip(shard_names) {
            weight_map.extend(shard.names.iter().map(|tensor| (tensor.clone(), json!(file))));
        }
        weight_map.sort_keys();
        json!({ "metadata": { "total_size": self.total_bytes() }, "weight_map": weight_map })
    }
}

impl Drop for CheckpointWriter {
    fn drop(&mut self) {
        if !self.finished {
            for shard in &self.shards {
                // Nobody is left to tell; a file that stays is removed by the next writer.
                drop(fs::remove_file(&shard.path));
            }
        }
    }
}

/// One parameter being written, from its first row to its last.
pub struct TensorWriter<'a> {
    tensor: String,
    slot: &'a mut Slot,
    shard: &'a mut ShardFile,
    file: File,
    written: u64,
    narrowed: Vec<u8>,
}

impl TensorWriter<'_> {
    /// How the parameter is stored.
    pub fn dtype(&self) -> DType {
        self.slot.dtype
    }

    /// Appends bytes of the stored type, little-endian.
    pub fn write_bytes(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        let written = self.written + bytes.len() as u64;
        if written > self.slot.bytes {
            return Err(self.length_error(written));
        }
        self.file.write_all(bytes).map_err(write_error(&self.shard.path))?;
        self.written = written;
        Ok(())
    }

    /// Appends f32 values, rounding to nearest even where they are stored narrower.
    pub fn write_f32(&mut self, values: &[f32]) -> Result<(), WriteError> {
        const BLOCK: usize = 1 << 18;
        for block in values.chunks(BLOCK) {
            let mut bytes = std::mem::take(&mut self.narrowed);
            bytes.resize(block.len() * self.slot.dtype.size(), 0);
            narrow(block, self.slot.dtype, &mut bytes);
            let outcome = self.write_bytes(&bytes);
            self.narrowed = bytes;
            outcome?;
        }
        Ok(())
    }

    /// Ends the parameter, which must be complete. The last one of a shard brings the shard to disk.
    pub fn finish(self) -> Result<(), WriteError> {
        if self.written != self.slot.bytes {
            return Err(self.length_error(self.written));
        }
        self.slot.state = SlotState::Written;
        self.shard.unwritten -= 1;
        if self.shard.unwritten == 0 {
            self.file.sync_all().map_err(write_error(&self.shard.path))?;
        }
        Ok(())
    }

    fn length_error(&self, found: u64) -> WriteError {
        WriteError::Length { tensor: self.tensor.clone(), expected: self.slot.bytes, found }
    }
}

/// Stores f32 values in another type, little-endian, rounding to nearest even.
pub(crate) fn narrow(values: &[f32], dtype: DType, bytes: &mut [u8]) {
    match dtype {
        DType::F32 => store(values, bytes, f32::to_le_bytes),
        DType::Bf16 => store(values, bytes, |value| bf16::from_f32(value).to_le_bytes()),
        DType::F16 => store(values, bytes, |value| f16::from_f32(value).to_le_bytes()),
    }
}

fn store<const N: usize>(values: &[f32], bytes: &mut [u8], to: impl Fn(f32) -> [u8; N]) {
    for (bytes, value) in bytes.as_chunks_mut::<N>().0.iter_mut().zip(values) {
        *bytes = to(*value);
    }
}

/// Copies the files of a tokenizer, with its chat template, from one directory to another, and
/// returns the names of those that were there.
pub fn copy_tokenizer_files(from: &Path, to: &Path) -> Result<Vec<&'static str>, WriteError> {
    const FILES: [&str; 7] = [
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
        "merges.txt",
        "special_tokens_map.json",
        "added_tokens.json",
        "chat_template.jinja",
    ];
    fs::create_dir_all(to).map_err(write_error(to))?;
    let mut copied = Vec::new();
    for name in FILES {
        let source = from.join(name);
        if source.is_file() {
            // Read and written, not copied: the permissions of the source may forbid writing.
            let bytes = fs::read(&source)
                .map_err(|error| WriteError::Copy { file: source.clone(), source: error })?;
            replace_file(&to.join(name), &bytes)?;
            copied.push(name);
        }
    }
    Ok(copied)
}

/// Splits the parameters, in order, so that no group of several exceeds `limit` bytes.
fn group_into_shards(
    config: &Config,
    limit: u64,
    dtype_of: impl Fn(Param) -> DType,
) -> Vec<Vec<(Param, DType)>> {
    let (mut groups, mut size) = (vec![Vec::new()], 0u64);
    for param in Param::all(config) {
        let dtype = dtype_of(param);
        let bytes = (param.elements(config) * dtype.size()) as u64;
        if size > 0 && size.saturating_add(bytes) > limit {
            groups.push(Vec::new());
            size = 0;
        }
        size += bytes;
        if let Some(group) = groups.last_mut() {
            group.push((param, dtype));
        }
    }
    groups
}

/// The bytes of a shard before its data, and where in the file each tensor begins and the last ends.
fn shard_header(config: &Config, group: &[(Param, DType)]) -> (Vec<u8>, Vec<u64>) {
    let mut end = 0;
    let tensors = group.iter().map(|(param, dtype)| {
        let start = end;
        end += param.elements(config) * dtype.size();
        let (dtype, shape) = (dtype.to_safetensors(), param.tensor_shape(config));
        (param.name(config), TensorInfo { dtype, shape, data_offsets: (start, end) })
    });
    let tensors: Vec<_> = tensors.collect();
    let offsets: Vec<usize> =
        std::iter::once(0).chain(tensors.iter().map(|(_, info)| info.data_offsets.1)).collect();
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let json = Metadata::new(Some(metadata), tensors)
        .map_err(|error| error.to_string())
        .and_then(|metadata| serde_json::to_vec(&metadata).map_err(|error| error.to_string()))
        .expect("tensors laid out one after the other make a valid header");
    let length = (LENGTH_BYTES + json.len()).next_multiple_of(DATA_ALIGNMENT) - LENGTH_BYTES;
    let mut header = (length as u64).to_le_bytes().to_vec();
    header.extend(json);
    header.resize(LENGTH_BYTES + length, b' ');
    let data_start = header.len() as u64;
    (header, offsets.into_iter().map(|offset| data_start + offset as u64).collect())
}

fn write_error(file: &Path) -> impl FnOnce(io::Error) -> WriteError {
    move |source| WriteError::Write { file: file.to_owned(), source }
}

fn create_file(path: &Path, header: &[u8], length: u64) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(header)?;
    file.set_len(length)
}

/// Writes a small file so that it is either the old or the new one, never a part.
fn replace_file(path: &Path, bytes: &[u8]) -> Result<(), WriteError> {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(PARTIAL);
    let partial = path.with_file_name(name);
    let write = || -> io::Result<()> {
        let mut file = File::create(&partial)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&partial, path)
    };
    write().map_err(write_error(path))
}

fn is_empty(directory: &Path) -> Result<bool, WriteError> {
    Ok(fs::read_dir(directory).map_err(write_error(directory))?.next().is_none())
}

fn entries(directory: &Path, matches: impl Fn(&str) -> bool) -> Result<Vec<PathBuf>, WriteError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).map_err(write_error(directory))? {
        let entry = entry.map_err(write_error(directory))?;
        if entry.file_name().to_str().is_some_and(&matches) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// Removes what a writer that was killed left behind.
fn remove_partial_files(directory: &Path) -> Result<(), WriteError> {
    remove_all(entries(directory, |name| name.starts_with('.') && name.ends_with(PARTIAL))?)
}

/// Removes the old weights, the file that lists them first.
fn remove_old_checkpoint(directory: &Path) -> Result<(), WriteError> {
    let is_shard = |name: &str| name.starts_with("model-") && name.ends_with(".safetensors");
    let listing = [INDEX_FILE, SINGLE_FILE].map(|name| directory.join(name));
    remove_all(listing.into_iter().filter(|path| path.exists()).collect())?;
    remove_all(entries(directory, is_shard)?)
}

fn remove_all(paths: Vec<PathBuf>) -> Result<(), WriteError> {
    paths.iter().try_for_each(|path| fs::remove_file(path).map_err(write_error(path)))
}

/// Brings the names of a directory to disk. Not every system can; the files themselves are synced.
fn sync_directory(directory: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(directory)?.sync_all() } else { Ok(()) }
}
