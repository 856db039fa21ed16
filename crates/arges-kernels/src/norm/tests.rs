use super::*;
use crate::device::cpu::{Cpu, CpuOptions, Isa};
use crate::testing::{Random, widen};

#[test]
fn norms_agree_with_the_reference_over_odd_widths() {
    let mut random = Random::new(1);
    for isa in Isa::available() {
        let cpu = Cpu::new(CpuOptions { isa: Some(isa), threads: Some(2) }).unwrap();
        for (rows, n) in [(1, 1), (3, 17), (20, 96), (9, 130)] {
            let x = random.normal(rows * n);
            let weight = random.normal(n);
            let stride = n + 5;
            let gate = random.normal(rows * stride);
            let mut normed = vec![0.0; rows * n];
            rms_norm(&cpu, &x, &weight, 1e-5, &mut normed);
            let mut gated = x.clone();
            gated_rms_norm(&cpu, &mut gated, &gate, stride, &weight, 1e-6);
            for row in 0..rows {
                let (x, weight) = (widen(&x[row * n..][..n]), widen(&weight));
                let expected = reference::rms_norm(&x, &weight, 1e-5);
                for (got, expected) in normed[row * n..].iter().zip(&expected) {
                    assert!((f64::from(*got) - expected).abs() < 2e-6 * (1.0 + expected.abs()), "{isa}");
                }
                let expected =
                    reference::gated_rms_norm(&x, &widen(&gate[row * stride..][..n]), &weight, 1e-6);
                for (got, expected) in gated[row * n..].iter().zip(&expected) {
                    assert!((f64::from(*got) - expected).abs() < 2e-6 * (1.0 + expected.abs()), "{isa}");
                }
            }
        }
    }
}

#[test]
fn residuals_scale_both_sides() {
    let cpu = Cpu::new(CpuOptions::default()).unwrap();
    let mut x = [1.0, 2.0];
    residual(&cpu, &mut x, None, 3.0, &[10.0, 20.0], 0.5);
    assert_eq!(x, [8.0, 16.0]);
    residual(&cpu, &mut x, Some(&[1.0, 1.0]), 2.0, &[1.0, 3.0], 1.0);
    assert_eq!(x, [3.0, 5.0]);
}
