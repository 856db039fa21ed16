//! A published version, checked and ready to be packed.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use arges_kernels::matmul::{RowMajor, Stored};

use super::delta::{DELTA_FILE, Delta};
use super::{Kind, Manifest, PublicationError, read_error, version_name};
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::config::Config;
use crate::dtype::DType;
use crate::model::source::{WeightSource, row_major};
use crate::params::Param;

/// All weights of a version: a full one, or a full one with changes.
pub struct Snapshot {
    version: u64,
    kind: Kind,
    bytes: u64,
    base: Checkpoint,
    base_version: u64,
    base_sum: String,
    delta: Option<Delta>,
    /// Parameters that differ from those of the model which is to take them; all, if not known.
    differing: Option<HashSet<Param>>,
}

/// What a model that took a version has: enough to tell what another one changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// The version.
    pub version: u64,
    base_version: u64,
    base_sum: String,
    changed: HashSet<Param>,
}

impl Snapshot {
    /// Opens a version of a directory of publications and checks all of it. Given what a model already has, a base that
    /// was checked for that is not read again, and [`WeightSource::differs`] tells what is left to pack.
    ///
    /// # Errors
    /// A version that is not there, or is damaged, incomplete or of another form; a base that is not the one it was made
    /// against.
    pub fn open(directory: &Path, version: u64, applied: Option<&Applied>) -> Result<Self, PublicationError> {
        let place = directory.join(version_name(version));
        if !place.is_dir() {
            return Err(PublicationError::NoVersion { directory: directory.to_owned(), version });
        }
        let (manifest, sum) = Manifest::read(&place)?;
        if manifest.version != version {
            let reason = format!("it is of version {} and not {version}", manifest.version);
            return Err(PublicationError::Malformed { file: place.join(super::MANIFEST_FILE), reason });
        }
        let known = |sum: &str| applied.is_some_and(|applied| applied.base_sum == sum);
        let Some(base) = &manifest.base else {
            manifest.check(&place, !known(&sum))?;
            return Ok(Self {
                version,
                kind: Kind::Full,
                bytes: manifest.bytes(),
                base: Checkpoint::open(&place)?,
                base_version: version,
                base_sum: sum,
                delta: None,
                differing: None,
            }
            .after(applied));
        };
        manifest.check(&place, true)?;
        let fault = |reason: String| PublicationError::Base { version, base: base.version, reason };
        let base_place = directory.join(version_name(base.version));
        if !base_place.is_dir() {
            return Err(fault("which is not there".to_owned()));
        }
        let (base_manifest, base_sum) = Manifest::read(&base_place)?;
        if base_sum != base.crc32c || base_manifest.kind != Kind::Full {
            return Err(fault("but was made against another one of that number".to_owned()));
        }
        base_manifest.check(&base_place, !known(&base_sum))?;
        let checkpoint = Checkpoint::open(&base_place)?;
        let file = place.join(DELTA_FILE);
        let opened = fs::File::open(&file).map_err(read_error(&file))?;
        let delta = Delta::read(opened, base.raw_bytes, &checkpoint)
            .map_err(|reason| PublicationError::Delta { file, reason })?;
        Ok(Self {
            version,
            kind: Kind::Delta,
            bytes: manifest.bytes(),
            base: checkpoint,
            base_version: base.version,
            base_sum,
            delta: Some(delta),
            differing: None,
        }
        .after(applied))
    }

    /// Notes what differs from a model that has `applied`.
    fn after(mut self, applied: Option<&Applied>) -> Self {
        self.differing = applied.filter(|applied| applied.base_sum == self.base_sum).map(|applied| {
            let ours = self.delta.iter().flat_map(Delta::params);
            applied.changed.iter().copied().chain(ours).collect()
        });
        self
    }

    /// Its number.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Whether it was published whole.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Bytes that were published for it, without its base.
    pub fn published_bytes(&self) -> u64 {
        self.bytes
    }

    /// What a model has that took it.
    pub fn applied(&self) -> Applied {
        Applied {
            version: self.version,
            base_version: self.base_version,
            base_sum: self.base_sum.clone(),
            changed: self.delta.iter().flat_map(Delta::params).collect(),
        }
    }
}

impl Applied {
    /// The full version that it rests on.
    pub fn base_version(&self) -> u64 {
        self.base_version
    }
}

impl WeightSource for Snapshot {
    fn config(&self) -> &Config {
        self.base.config()
    }

    fn dtype(&self, param: Param) -> Result<DType, CheckpointError> {
        Ok(self.base.param(param)?.dtype)
    }

    fn show(&self, param: Param, take: &mut dyn FnMut(RowMajor<'_>)) -> Result<(), CheckpointError> {
        let view = self.base.param(param)?;
        let tied = param == Param::Head && self.config().tie_word_embeddings;
        let owner = if tied { Param::Embedding } else { param };
        let changed = self.delta.as_ref().and_then(|delta| delta.apply(owner, view.data, view.dtype.size()));
        match &changed {
            Some(data) => take(RowMajor { data, ..row_major(&view) }),
            None => take(row_major(&view)),
        }
        self.base.release(param);
        Ok(())
    }

    fn bytes(&self) -> usize {
        self.base.weight_bytes()
    }

    fn differs(&self, param: Param) -> bool {
        let tied = param == Param::Head && self.config().tie_word_embeddings;
        let owner = if tied { Param::Embedding } else { param };
        self.differing.as_ref().is_none_or(|differing| differing.contains(&owner))
    }
}

/// The bytes of weights in a type, as they are stored.
pub(super) fn stored_bytes(weights: RowMajor<'_>, dtype: DType) -> std::borrow::Cow<'_, [u8]> {
    let same = matches!(
        (weights.stored, dtype),
        (Stored::F32, DType::F32) | (Stored::Bf16, DType::Bf16) | (Stored::F16, DType::F16)
    );
    if same {
        return weights.data.into();
    }
    let values: Vec<f32> =
        (0..weights.rows * weights.cols).map(|i| weights.stored.read(weights.data, i)).collect();
    let mut bytes = vec![0; values.len() * dtype.size()];
    crate::checkpoint::narrow(&values, dtype, &mut bytes);
    bytes.into()
}
