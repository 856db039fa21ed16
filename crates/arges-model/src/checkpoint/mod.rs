//! Checkpoints in Hugging Face layout: `config.json`, and safetensors shards with an index or a
//! single `model.safetensors`; in a directory, or in memory as a part of the program.
//!
//! Opening maps the shards and checks all of them: every parameter must be there once, with the
//! shape the configuration asks for, and nothing else.

mod error;
mod files;
mod header;
#[allow(unsafe_code)]
mod mapping;
mod shards;
mod view;
mod writer;

use std::collections::{HashMap, HashSet};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

pub use error::{CheckpointError, WriteError};
pub use files::StaticFile;
pub use header::HeaderError;
pub(crate) use header::parse as parse_header;
pub use view::WeightView;
pub use writer::{CheckpointWriter, DEFAULT_SHARD_BYTES, TensorWriter, WriteOptions, copy_tokenizer_files};

pub use crate::dtype::DType;
pub(crate) use writer::narrow;

use crate::config::Config;
use crate::params::{Param, StoredAs, is_derived, shared_width_tensor};
use files::Files;
use shards::{Shards, StoredTensor};

/// An open checkpoint: its configuration, and its weights mapped from their files.
pub struct Checkpoint {
    directory: PathBuf,
    config: Config,
    shards: Shards,
    places: HashMap<Param, Place>,
}

/// Where a parameter lies.
struct Place {
    tensor: String,
    shard: usize,
    dtype: DType,
    rows: usize,
    cols: usize,
    bytes: Range<usize>,
}

impl Checkpoint {
    /// Opens the checkpoint of a directory and checks it whole, without reading the weights.
    ///
    /// The files must not be changed in place while the checkpoint is open; replacing them by
    /// renaming, as [`CheckpointWriter`] does, is safe.
    pub fn open(directory: &Path) -> Result<Checkpoint, CheckpointError> {
        Self::open_files(&Files::Directory(directory), Config::from_dir(directory)?)
    }

    /// Opens a checkpoint that is part of the program, and checks it as [`Checkpoint::open`] does.
    /// `origin` stands for its directory, in errors and otherwise.
    pub fn from_static(origin: &Path, files: &'static [StaticFile]) -> Result<Checkpoint, CheckpointError> {
        let files = Files::Memory { origin, files };
        let config = Config::from_files(origin, |name| {
            let bytes = files.read(name)?.into_owned();
            String::from_utf8(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
        })?;
        Self::open_files(&files, config)
    }

    fn open_files(files: &Files, mut config: Config) -> Result<Checkpoint, CheckpointError> {
        let shards = Shards::open(files)?;
        adopt_shared_width(&mut config, &shards, files.directory())?;
        let (places, used) = place_all(&config, &shards)?;
        refuse_extra(&config, &shards, &used)?;
        Ok(Checkpoint { directory: files.directory().to_owned(), config, shards, places })
    }

    /// The configuration; the width of the shared MLP is that of the stored tensors.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Where the checkpoint was opened, or what stands for it.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Bytes of all parameters as stored.
    pub fn weight_bytes(&self) -> usize {
        self.places.values().map(|place| place.bytes.len()).sum()
    }

    /// Number of weight files.
    pub fn shard_count(&self) -> usize {
        self.shards.shards.len()
    }

    /// A parameter's numbers where they are mapped. A tied head is the embedding.
    pub fn param(&self, param: Param) -> Result<WeightView<'_>, CheckpointError> {
        let place = self.place(param).ok_or(CheckpointError::NoSuchParam { param })?;
        Ok(WeightView {
            name: &place.tensor,
            dtype: place.dtype,
            rows: place.rows,
            cols: place.cols,
            data: &self.shards.shards[place.shard].mapping.bytes()[place.bytes.clone()],
        })
    }

    /// Tells the operating system that a parameter's bytes are not needed soon, so that weights
    /// copied elsewhere do not count twice in resident memory. They can still be read, from the
    /// file again.
    pub fn release(&self, param: Param) {
        if let Some(place) = self.place(param) {
            self.shards.shards[place.shard].mapping.release(place.bytes.clone());
        }
    }

    fn place(&self, param: Param) -> Option<&Place> {
        let tied = param == Param::Head && self.config.tie_word_embeddings;
        self.places.get(if tied { &Param::Embedding } else { &param })
    }
}

/// Takes the shared MLP's width from its tensors: the official code builds it with
/// `intermediate_size`, other engines with `shared_intermediate_size`.
fn adopt_shared_width(config: &mut Config, shards: &Shards, directory: &Path) -> Result<(), CheckpointError> {
    if !config.has_shared_mlp() {
        return Ok(());
    }
    if let Some(&width) = shards.tensors.get(&shared_width_tensor()).and_then(|t| t.shape.first())
        && width > 0
    {
        config.shared_intermediate_size = width;
        config.validate(&directory.join("config.json"))?;
    }
    Ok(())
}

/// The place of every parameter, and the names of the tensors that hold them.
fn place_all(
    config: &Config,
    shards: &Shards,
) -> Result<(HashMap<Param, Place>, HashSet<String>), CheckpointError> {
    let (mut places, mut used) = (HashMap::new(), HashSet::new());
    let mut missing: Option<(Param, usize)> = None;
    for param in Param::all(config) {
        let forms = param.stored_as(config);
        let found = forms.into_iter().find_map(|form| Some((shards.tensors.get(&form.name)?, form)));
        let Some((tensor, form)) = found else {
            missing = Some(missing.map_or((param, 0), |(first, others)| (first, others + 1)));
            continue;
        };
        used.insert(form.name.clone());
        places.insert(param, place(param, config, shards, tensor, form)?);
    }
    if let Some((param, others)) = missing {
        let (tensor, expected) = (param.name(config), param.tensor_shape(config));
        return Err(CheckpointError::Missing { tensor, expected, file: shards.listing.clone(), others });
    }
    Ok((places, used))
}

fn place(
    param: Param,
    config: &Config,
    shards: &Shards,
    tensor: &StoredTensor,
    form: StoredAs,
) -> Result<Place, CheckpointError> {
    let file = || shards.path_of(tensor).to_owned();
    if tensor.shape != form.shape {
        let found = tensor.shape.clone();
        return Err(CheckpointError::Misshapen {
            tensor: form.name,
            expected: form.shape,
            found,
            file: file(),
        });
    }
    let Some(dtype) = DType::from_safetensors(tensor.dtype) else {
        let found = tensor.dtype.to_string();
        return Err(CheckpointError::DType { tensor: form.name, found, file: file() });
    };
    let [rows, cols] = param.shape(config);
    // The header's check made the tensor's shape fill its bytes, and the parameter lies in it.
    let start = tensor.bytes.start + form.first_row * cols * dtype.size();
    let bytes = start..start + rows * cols * dtype.size();
    Ok(Place { tensor: form.name, shard: tensor.shard, dtype, rows, cols, bytes })
}

/// Refuses tensors that hold no parameter. A stored head is accepted beside a tied embedding if it
/// is the same.
fn refuse_extra(config: &Config, shards: &Shards, used: &HashSet<String>) -> Result<(), CheckpointError> {
    let mut extra: Vec<(&String, &StoredTensor)> = shards
        .tensors
        .iter()
        .filter(|(name, _)| !used.contains(*name) && !is_derived(name, config))
        .collect();
    if config.tie_word_embeddings
        && let Some(at) = extra.iter().position(|(name, _)| *name == "lm_head.weight")
    {
        let (name, head) = extra.swap_remove(at);
        refuse_untied(config, shards, name, head)?;
    }
    extra.sort_by_key(|(name, _)| *name);
    match extra.first() {
        None => Ok(()),
        Some((name, tensor)) => Err(CheckpointError::Extra {
            tensor: (*name).clone(),
            shape: tensor.shape.clone(),
            file: shards.path_of(tensor).to_owned(),
            others: extra.len() - 1,
        }),
    }
}

fn refuse_untied(
    config: &Config,
    shards: &Shards,
    name: &str,
    head: &StoredTensor,
) -> Result<(), CheckpointError> {
    let embedding = shards.tensors.get(&Param::Embedding.name(config));
    let same = embedding.is_some_and(|embedding| {
        embedding.dtype == head.dtype && shards.bytes_of(embedding) == shards.bytes_of(head)
    });
    if same {
        return Ok(());
    }
    Err(CheckpointError::HeadNotTied { tensor: name.to_owned(), file: shards.path_of(head).to_owned() })
}
