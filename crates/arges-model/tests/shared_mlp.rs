//! The MLP that every token passes beside its experts, by models that must come out equal without it.

mod support;

use std::path::Path;

use arges_kernels::matmul::Compute;
use arges_model::checkpoint::{CheckpointWriter, WriteOptions};
use arges_model::{Checkpoint, Config, DType, LayerParam, Param};
use support::{Golden, Runner, data};

/// Writes tiny-m1 with another configuration and other weights.
fn write(directory: &Path, change: impl Fn(&mut Config), weights: impl Fn(&Checkpoint, Param) -> Vec<f32>) {
    let source = Checkpoint::open(&data("tiny-m1").join("fp32")).unwrap();
    let mut config = source.config().clone();
    change(&mut config);
    let mut writer =
        CheckpointWriter::create(directory, &config, WriteOptions::default(), |_| DType::F32).unwrap();
    for param in Param::all(&config) {
        writer.write_f32(param, &weights(&source, param)).unwrap();
    }
    writer.finish().unwrap();
}

fn logits(directory: &Path) -> Vec<f32> {
    let tokens = Golden::open("tiny-m1", "inputs").tokens("len257");
    Runner::new(directory, Compute::F32, None).logits(&tokens)
}

fn assert_equal(left: &Path, right: &Path) {
    let (left, right) = (logits(left), logits(right));
    let difference = left.iter().zip(&right).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(difference < 2e-4, "logits differ by {difference:e}");
}

/// The weights of expert 0 in place of any other's and of the shared MLP's.
fn first_expert(source: &Checkpoint, param: Param) -> Option<Vec<f32>> {
    use LayerParam::*;
    let Param::Layer(layer, param) = param else { return None };
    let instead = match param {
        ExpertGate(_) | SharedGate => ExpertGate(0),
        ExpertUp(_) | SharedUp => ExpertUp(0),
        ExpertDown(_) | SharedDown => ExpertDown(0),
        _ => return None,
    };
    Some(source.param(Param::Layer(layer, instead)).unwrap().to_f32())
}

fn own(source: &Checkpoint, param: Param) -> Vec<f32> {
    source.param(param).unwrap().to_f32()
}

#[test]
fn a_shared_mlp_like_the_only_expert_changes_nothing_whatever_its_coefficient() {
    let (with, without) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let weights = |source: &Checkpoint, param| {
        if matches!(param, Param::Layer(_, LayerParam::SharedCoefficient)) {
            return (0..source.config().hidden_size).map(|i| (i as f32 * 0.7).sin()).collect();
        }
        first_expert(source, param).unwrap_or_else(|| own(source, param))
    };
    write(with.path(), |config| config.shared_intermediate_size = config.intermediate_size, weights);
    write(without.path(), |_| {}, weights);
    assert_equal(with.path(), without.path());
}

#[test]
fn a_shared_mlp_that_gives_nothing_takes_its_share_from_the_experts() {
    let (with, halved) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let weights = |source: &Checkpoint, param: Param| match param {
        // The sigmoid of 0 is a half.
        Param::Layer(_, LayerParam::SharedCoefficient | LayerParam::SharedDown) => {
            let [rows, cols] =
                param.shape(&Config { shared_intermediate_size: 40, ..source.config().clone() });
            vec![0.0; rows * cols]
        }
        Param::Layer(layer, LayerParam::SharedGate | LayerParam::SharedUp) => {
            own(source, Param::Layer(layer, LayerParam::ExpertGate(1)))[..40 * 64].to_vec()
        }
        _ => own(source, param),
    };
    write(with.path(), |config| config.shared_intermediate_size = 40, weights);
    write(halved.path(), |config| config.mlp.beta = 0.5, weights);
    assert_equal(with.path(), halved.path());
}
