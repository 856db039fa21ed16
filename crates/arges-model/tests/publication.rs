//! Weights that are published, read back, damaged and replaced.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arges_kernels::device::cpu::{Cpu, CpuOptions};
use arges_model::publication::{
    Kind, PublicationError, PublishOptions, Published, Publisher, Snapshot, latest, version_name, versions,
};
use arges_model::training::Parameters;
use arges_model::{Checkpoint, DType, Param, WeightSource};
use tempfile::TempDir;

struct Fixture {
    directory: TempDir,
    parameters: Parameters,
    cpu: Arc<Cpu>,
    publisher: Publisher,
}

fn checkpoint() -> Checkpoint {
    Checkpoint::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny-m1/fp32")).unwrap()
}

fn fixture(options: PublishOptions) -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    let publisher = Publisher::new(&directory.path().join("weights"), options).unwrap();
    let cpu = Arc::new(Cpu::new(CpuOptions { threads: Some(1), isa: None }).unwrap());
    Fixture { directory, parameters: Parameters::full(&checkpoint()).unwrap(), cpu, publisher }
}

impl Fixture {
    fn publish(&mut self, version: u64) -> Published {
        self.publisher.publish(version, &self.parameters.weights(&self.cpu)).unwrap()
    }

    fn weights(&self) -> PathBuf {
        self.directory.path().join("weights")
    }

    fn file(&self, version: u64, name: &str) -> PathBuf {
        self.weights().join(version_name(version)).join(name)
    }

    fn open(&self, version: u64) -> Result<Snapshot, PublicationError> {
        Snapshot::open(&self.weights(), version, None)
    }

    fn refusal(&self, version: u64) -> String {
        self.open(version).err().expect("it was taken").to_string()
    }

    /// Changes every `step`th weight.
    fn change(&mut self, step: usize) {
        self.parameters.values_mut().iter_mut().step_by(step).for_each(|value| *value += 0.5);
    }

    /// Bytes of all parameters as they should be read back.
    fn expected(&self, matrices: DType) -> Vec<Vec<f32>> {
        let round = |value: f32| match matrices {
            DType::Bf16 => half::bf16::from_f32(value).to_f32(),
            _ => value,
        };
        all_of(&self.parameters.weights(&self.cpu))
            .into_iter()
            .map(|(param, values)| match param {
                Param::Layer(_, arges_model::LayerParam::Router) => values,
                param if param.is_norm() => values,
                _ => values.into_iter().map(round).collect(),
            })
            .collect()
    }
}

fn all_of(source: &dyn WeightSource) -> Vec<(Param, Vec<f32>)> {
    let values = |param| {
        let mut values = Vec::new();
        source
            .show(param, &mut |w| values = (0..w.rows * w.cols).map(|i| w.stored.read(w.data, i)).collect())
            .unwrap();
        (param, values)
    };
    Param::all(source.config()).map(values).collect()
}

fn values(source: &dyn WeightSource) -> Vec<Vec<f32>> {
    all_of(source).into_iter().map(|(_, values)| values).collect()
}

#[test]
fn what_is_published_is_read_back_bit_for_bit() {
    for dtype in [DType::Bf16, DType::F32] {
        let mut fixture = fixture(PublishOptions { dtype, ..PublishOptions::default() });
        assert_eq!(fixture.publish(3).kind, Kind::Full);
        assert_eq!(values(&fixture.open(3).unwrap()), fixture.expected(dtype));
        // Little of everything, then all of one tensor.
        for version in [4, 7] {
            if version == 4 {
                fixture.change(97);
            } else {
                let range = fixture.parameters.tensors()[2].range.clone();
                fixture.parameters.values_mut()[range].fill(0.25);
            }
            assert_eq!(fixture.publish(version).kind, Kind::Delta);
            assert_eq!(values(&fixture.open(version).unwrap()), fixture.expected(dtype));
        }
        assert_eq!(latest(&fixture.weights()).unwrap(), 7);
        // A full version is a checkpoint for any program.
        Checkpoint::open(&fixture.weights().join(version_name(3))).unwrap();
    }
}

#[test]
fn a_delta_takes_little_room_and_one_that_would_not_is_full() {
    let mut fixture = fixture(PublishOptions::default());
    let full = fixture.publish(1);
    fixture.change(100);
    let delta = fixture.publish(2);
    assert_eq!(delta.kind, Kind::Delta);
    assert!(delta.bytes * 20 < full.bytes, "{} of {}", delta.bytes, full.bytes);
    fixture.change(1);
    assert_eq!(fixture.publish(3).kind, Kind::Full);
    assert_eq!(values(&fixture.open(3).unwrap()), fixture.expected(DType::Bf16));
}

#[test]
fn a_model_that_has_a_version_is_told_what_differs() {
    let mut fixture = fixture(PublishOptions::default());
    fixture.publish(1);
    let [one, two] = [0, 5].map(|tensor| fixture.parameters.tensors()[tensor].range.clone());
    let params: Vec<Param> = Param::all(fixture.parameters.config()).collect();
    fixture.parameters.values_mut()[one.start] += 1.0;
    fixture.publish(2);
    fixture.parameters.values_mut()[one.start] -= 1.0;
    fixture.parameters.values_mut()[two.start] += 1.0;
    fixture.publish(3);
    let applied = fixture.open(2).unwrap().applied();
    assert_eq!((applied.version, applied.base_version()), (2, 1));
    let next = Snapshot::open(&fixture.weights(), 3, Some(&applied)).unwrap();
    // The first tensor goes back to what it was.
    let differing: Vec<bool> = params.iter().map(|param| next.differs(*param)).collect();
    let expected: Vec<bool> = (0..params.len()).map(|i| i == 0 || i == 5).collect();
    assert_eq!(differing, expected);
    assert!(params.iter().all(|param| fixture.open(3).unwrap().differs(*param)));
}

#[test]
fn old_versions_go_but_not_what_others_rest_on() {
    let mut fixture = fixture(PublishOptions { deltas: 3, keep: 2, ..PublishOptions::default() });
    let mut kinds = Vec::new();
    for version in (10..80).step_by(10) {
        fixture.change(1000);
        kinds.push(fixture.publish(version).kind);
        assert_eq!(values(&fixture.open(version).unwrap()), fixture.expected(DType::Bf16));
    }
    use Kind::{Delta, Full};
    assert_eq!(kinds, [Full, Delta, Delta, Delta, Full, Delta, Delta]);
    assert_eq!(versions(&fixture.weights()).unwrap(), [50, 60, 70]);
    assert!(matches!(fixture.open(40), Err(PublicationError::NoVersion { version: 40, .. })));
}

#[test]
fn a_run_that_is_taken_up_again_replaces_what_came_after() {
    let mut fixture = fixture(PublishOptions::default());
    for version in 1..=3 {
        fixture.publish(version);
        fixture.change(50);
    }
    // What a writer left that was killed.
    fs::create_dir(fixture.weights().join(".partial-v000000000004")).unwrap();
    fs::write(fixture.weights().join(".partial-latest"), "{").unwrap();
    let applied = fixture.open(2).unwrap().applied();
    fixture.change(77);
    fixture.publish(2);
    assert_eq!(versions(&fixture.weights()).unwrap(), [1, 2]);
    let names = fs::read_dir(fixture.weights()).unwrap().count();
    assert_eq!(names, 3, "two versions and latest.json");
    let again = Snapshot::open(&fixture.weights(), 2, Some(&applied)).unwrap();
    assert_eq!(values(&again), fixture.expected(DType::Bf16));
    // A new full version under the old number is not what earlier deltas were made against.
    let delta = fs::read(fixture.file(2, "manifest.json")).unwrap();
    let changes = fs::read(fixture.file(2, "changes.safetensors.zst")).unwrap();
    fixture.change(3);
    fixture.publish(1);
    fs::create_dir(fixture.weights().join(version_name(2))).unwrap();
    fs::write(fixture.file(2, "manifest.json"), delta).unwrap();
    fs::write(fixture.file(2, "changes.safetensors.zst"), changes).unwrap();
    assert!(fixture.refusal(2).contains("made against another one"), "{}", fixture.refusal(2));
}

#[test]
fn whatever_is_damaged_is_refused_by_name() {
    let mut fixture = fixture(PublishOptions::default());
    fixture.publish(1);
    fixture.change(100);
    fixture.publish(2);
    for (version, name) in [
        (1, "model.safetensors"),
        (1, "config.json"),
        (1, "manifest.json"),
        (2, "changes.safetensors.zst"),
        (2, "manifest.json"),
    ] {
        let file = fixture.file(version, name);
        let whole = fs::read(&file).unwrap();
        let mut flipped = whole.clone();
        let middle = whole.len() / 2;
        flipped[middle] ^= 4;
        for damaged in [&whole[..whole.len() - 1], &whole[..middle], &[], &flipped] {
            fs::write(&file, damaged).unwrap();
            // Both rest on version 1.
            let refusal = fixture.refusal(2);
            assert!(refusal.contains(name) || refusal.contains("made against"), "{name}: {refusal}");
        }
        fs::remove_file(&file).unwrap();
        assert!(fixture.refusal(2).contains(name));
        fs::write(&file, &whole).unwrap();
        fixture.open(2).unwrap();
    }
    fs::write(fixture.file(2, "more.safetensors"), "").unwrap();
    assert!(matches!(fixture.open(2), Err(PublicationError::Unlisted { .. })));
    fs::remove_file(fixture.file(2, "more.safetensors")).unwrap();
    fs::remove_dir_all(fixture.weights().join(version_name(1))).unwrap();
    assert!(matches!(fixture.open(2), Err(PublicationError::Base { version: 2, base: 1, .. })));
}

#[test]
fn a_manifest_cannot_lead_out_of_its_directory_or_lie_about_sizes() {
    let mut fixture = fixture(PublishOptions::default());
    fixture.publish(1);
    fixture.change(100);
    fixture.publish(2);
    let file = fixture.file(2, "manifest.json");
    let text = fs::read_to_string(&file).unwrap();
    let manifest: serde_json::Value = serde_json::from_str(&text).unwrap();
    let raw_bytes = manifest["base"]["raw_bytes"].as_u64().unwrap();
    let with = |path: &str, value: serde_json::Value| {
        let mut changed = manifest.clone();
        *changed.pointer_mut(path).unwrap() = value;
        fs::write(&file, changed.to_string()).unwrap();
        fixture.refusal(2)
    };
    for name in ["../1/config.json", "/etc/passwd", "", ".hidden"] {
        assert!(with("/files/0/name", name.into()).contains("not the name of a file"));
    }
    assert!(with("/version", 3.into()).contains("of version 3"));
    assert!(with("/format", "other".into()).contains("format"));
    assert!(with("/kind", "full".into()).contains("base"));
    for wrong in [raw_bytes - 1, raw_bytes + 1] {
        assert!(with("/base/raw_bytes", wrong.into()).contains("have not the"));
    }
    assert!(with("/base/raw_bytes", u64::MAX.into()).contains("more than the whole model"));
}
