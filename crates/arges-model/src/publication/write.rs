//! Publishing: a version becomes visible when it is whole, old ones go.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::delta::{Changes, DELTA_FILE};
use super::manifest::Base;
use super::snapshot::stored_bytes;
use super::{
    Kind, LATEST_FILE, MANIFEST_FILE, Manifest, PublicationError, entries, version_name, versions,
    write_error,
};
use crate::checkpoint::{Checkpoint, CheckpointWriter, WriteOptions};
use crate::config::Config;
use crate::dtype::DType;
use crate::model::source::WeightSource;
use crate::params::{LayerParam, Param};

/// Of what is being written or removed.
const PARTIAL: &str = ".partial-";

/// How weights are published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublishOptions {
    /// How matrices are stored. What never is rounded in a model (norms, routers, the shared MLP's coefficient) is f32
    /// in any case, so that bf16 loses nothing where a model computes in bf16.
    pub dtype: DType,
    /// Deltas against one full version before the next is full; 0 publishes full versions alone.
    pub deltas: usize,
    /// Versions that stay, at least 1. What they are deltas against stays too.
    pub keep: usize,
}

impl Default for PublishOptions {
    /// bf16, 15 deltas to a full version, the last 4 versions.
    fn default() -> Self {
        Self { dtype: DType::Bf16, deltas: 15, keep: 4 }
    }
}

/// A directory of publications and the only one who writes there.
pub struct Publisher {
    directory: PathBuf,
    options: PublishOptions,
}

/// A version that was published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// Its number.
    pub version: u64,
    /// Whether it is all there.
    pub kind: Kind,
    /// Bytes of its files.
    pub bytes: u64,
}

impl Publisher {
    /// Publishes in a directory, which is made if it is not there.
    ///
    /// # Errors
    /// A directory that cannot be made.
    pub fn new(directory: &Path, options: PublishOptions) -> Result<Self, PublicationError> {
        fs::create_dir_all(directory).map_err(write_error(directory))?;
        Ok(Self { directory: directory.to_owned(), options })
    }

    /// Where it publishes.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Publishes weights. Versions of that number or later, which a run left that was taken up again before them, are
    /// replaced.
    ///
    /// # Errors
    /// Weights that cannot be read or written; then nothing of them is to be seen.
    pub fn publish(
        &mut self,
        version: u64,
        source: &dyn WeightSource,
    ) -> Result<Published, PublicationError> {
        self.remove_partial()?;
        let partial = self.directory.join(format!("{PARTIAL}{}", version_name(version)));
        let written = self.write(version, source, &partial);
        if written.is_err() {
            // The disk may be full: what was written is in the way of everything else.
            let _ = fs::remove_dir_all(&partial);
        }
        let published = written?;
        for later in versions(&self.directory)?.into_iter().filter(|later| *later >= version) {
            self.remove(later)?;
        }
        let place = self.directory.join(version_name(version));
        fs::rename(&partial, &place).map_err(write_error(&place))?;
        let latest = serde_json::json!({ "version": version }).to_string();
        let (file, new) = (self.directory.join(LATEST_FILE), self.directory.join(".partial-latest"));
        fs::write(&new, latest).and_then(|()| fs::rename(&new, &file)).map_err(write_error(&file))?;
        sync(&self.directory)?;
        self.prune()?;
        Ok(published)
    }

    fn write(
        &self,
        version: u64,
        source: &dyn WeightSource,
        partial: &Path,
    ) -> Result<Published, PublicationError> {
        let base = match self.base(version, source.config())? {
            Some(base) => self.write_delta(source, &base, partial)?,
            None => None,
        };
        if base.is_none() {
            self.write_full(source, partial)?;
        }
        let manifest = Manifest::of(partial, version, base)?;
        let file = partial.join(MANIFEST_FILE);
        fs::write(&file, manifest.to_json()).map_err(write_error(&file))?;
        for name in entries(partial)? {
            sync(&partial.join(name))?;
        }
        sync(partial)?;
        Ok(Published { version, kind: manifest.kind, bytes: manifest.bytes() })
    }

    fn dtype(&self, param: Param) -> DType {
        use LayerParam::{Router, SharedCoefficient};
        let exact = param.is_norm() || matches!(param, Param::Layer(_, Router | SharedCoefficient));
        if exact { DType::F32 } else { self.options.dtype }
    }

    fn write_full(&self, source: &dyn WeightSource, partial: &Path) -> Result<(), PublicationError> {
        let options = WriteOptions::default();
        let mut writer =
            CheckpointWriter::create(partial, source.config(), options, |param| self.dtype(param))?;
        for param in Param::all(source.config()) {
            let mut outcome = Ok(());
            source.show(param, &mut |weights| {
                outcome = writer.write_bytes(param, &stored_bytes(weights, self.dtype(param)));
            })?;
            outcome?;
        }
        Ok(writer.finish()?)
    }

    /// Writes what differs from a full version; nothing, when that is as much as the whole.
    fn write_delta(
        &self,
        source: &dyn WeightSource,
        base: &(Checkpoint, Base),
        partial: &Path,
    ) -> Result<Option<Base>, PublicationError> {
        let (checkpoint, reference) = base;
        let mut changes = Changes::default();
        for param in Param::all(source.config()) {
            let old = checkpoint.param(param)?;
            let (name, shape) = (param.name(source.config()), param.tensor_shape(source.config()));
            source.show(param, &mut |weights| {
                changes.compare(&name, old.dtype, &shape, old.data, &stored_bytes(weights, old.dtype));
            })?;
            checkpoint.release(param);
            if changes.bytes() > checkpoint.weight_bytes() / 2 {
                return Ok(None);
            }
        }
        fs::create_dir_all(partial).map_err(write_error(partial))?;
        let file = partial.join(DELTA_FILE);
        let (bytes, raw_bytes) = changes.finish().map_err(write_error(&file))?;
        fs::write(&file, bytes).map_err(write_error(&file))?;
        Ok(Some(Base { raw_bytes, ..reference.clone() }))
    }

    /// The full version that the next is a delta against, if it should be one.
    fn base(&self, version: u64, config: &Config) -> Result<Option<(Checkpoint, Base)>, PublicationError> {
        let mut number = 0;
        for earlier in versions(&self.directory)?.into_iter().rev().filter(|earlier| *earlier < version) {
            let place = self.directory.join(version_name(earlier));
            let (manifest, crc32c) = Manifest::read(&place)?;
            let Some(base) = manifest.base else {
                if number >= self.options.deltas {
                    return Ok(None);
                }
                let checkpoint = Checkpoint::open(&place)?;
                let fits = Param::all(config).all(|param| {
                    checkpoint.param(param).is_ok_and(|view| {
                        view.dtype == self.dtype(param) && [view.rows, view.cols] == param.shape(config)
                    })
                });
                return Ok(fits.then_some((
                    checkpoint,
                    Base { version: earlier, crc32c, number: number + 1, raw_bytes: 0 },
                )));
            };
            number = number.max(base.number);
        }
        Ok(None)
    }

    fn prune(&self) -> Result<(), PublicationError> {
        let all = versions(&self.directory)?;
        let kept = &all[all.len().saturating_sub(self.options.keep.max(1))..];
        let mut needed = Vec::new();
        for &version in kept {
            let (manifest, _) = Manifest::read(&self.directory.join(version_name(version)))?;
            needed.extend(manifest.base.map(|base| base.version));
        }
        all.iter()
            .filter(|version| !kept.contains(version) && !needed.contains(version))
            .try_for_each(|version| self.remove(*version))
    }

    /// A version loses its name first, so that none is ever found in part.
    fn remove(&self, version: u64) -> Result<(), PublicationError> {
        let place = self.directory.join(version_name(version));
        let partial = self.directory.join(format!("{PARTIAL}old-{}", version_name(version)));
        fs::rename(&place, &partial).map_err(write_error(&place))?;
        fs::remove_dir_all(&partial).map_err(write_error(&partial))
    }

    /// Removes what a run that was killed left half-written.
    fn remove_partial(&self) -> Result<(), PublicationError> {
        for name in entries(&self.directory)?.iter().filter(|name| name.starts_with(PARTIAL)) {
            let path = self.directory.join(name);
            let remove = if path.is_dir() { fs::remove_dir_all } else { fs::remove_file };
            remove(&path).map_err(write_error(&path))?;
        }
        Ok(())
    }
}

fn sync(path: &Path) -> Result<(), PublicationError> {
    let sync = || -> io::Result<()> { File::open(path)?.sync_all() };
    if cfg!(unix) || path.is_file() { sync().map_err(write_error(path)) } else { Ok(()) }
}
