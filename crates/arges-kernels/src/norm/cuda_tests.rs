use super::cuda::*;
use super::reference;
use crate::device::cuda::{Activations, Buffer};
use crate::matmul::Element;
use crate::matmul::cuda::{DeviceRows, PARTS};
use crate::testing::{CARDS, Random, assert_close, assert_compiles, bf16_round, gpu, widen};

const EPSILON: f32 = 1e-5;

fn tolerance(element: Element) -> f64 {
    if element == Element::F32 { 2e-6 } else { 4e-3 }
}

/// Rows of the reference one after the other.
fn norms(x: &[f64], weight: &[f64], width: usize) -> Vec<f64> {
    x.chunks(width).flat_map(|row| reference::rms_norm(row, weight, f64::from(EPSILON))).collect()
}

#[test]
fn the_stream_begins_with_the_embedding_and_takes_branches_as_the_reference_does() {
    let Some(cuda) = gpu() else { return };
    let mut random = Random::new(1);
    for element in [Element::F32, Element::Bf16] {
        for (rows, width) in [(1, 8), (3, 64), (5, 200), (2, 6144)] {
            let norms_of = Norms::new(&cuda, width, element, element).unwrap();
            let table = bf16_round(&random.normal(10 * width));
            let weight = random.normal(width);
            let tokens: Vec<i32> = (0..rows).map(|t| (t * 7 % 10) as i32).collect();
            let device_weight = Buffer::from_slice(&cuda, &weight).unwrap();
            let norm = Norm { weight: &device_weight, epsilon: EPSILON };
            let mut stream = Stream::zeroed(&cuda, rows, width, element).unwrap();
            let device_table = Activations::from_f32(&cuda, element, &table).unwrap();
            let device_tokens = Buffer::from_slice(&cuda, &tokens).unwrap();
            let mut kept = Activations::zeroed(&cuda, element, rows * width).unwrap();
            norms_of.embed(&device_tokens, rows, &device_table, norm, &mut stream, Some(&mut kept)).unwrap();
            let x: Vec<f64> =
                tokens.iter().flat_map(|t| widen(&table[*t as usize * width..][..width])).collect();
            let normed = norms(&x, &widen(&weight), width);
            assert_eq!(widen(&stream.x.to_vec().unwrap()), x);
            assert_eq!(widen(&kept.to_f32().unwrap()), x);
            let got = stream.normed.data().to_f32().unwrap();
            assert_close(&got, &normed, tolerance(element), "normed");
            let mut exact = Buffer::zeroed(&cuda, rows * width).unwrap();
            let mut again = DeviceRows::zeroed(&cuda, rows, width, element).unwrap();
            let stream_x = Activations::from_f32(&cuda, Element::F32, &stream.x.to_vec().unwrap()).unwrap();
            norms_of.norm_rows(&stream_x, rows, norm, Some(&mut exact), &mut again).unwrap();
            assert_close(&exact.to_vec().unwrap(), &normed, 2e-6, "normed in f32");
            assert!(again.data().to_f32().unwrap() == got, "other bits alone");

            let branch = bf16_round(&random.normal(rows * width));
            let device_branch = Activations::from_f32(&cuda, element, &branch).unwrap();
            for postnorm in [true, false] {
                let normed = stream.normed.data().to_f32().unwrap();
                let base = if postnorm { normed.clone() } else { stream.x.to_vec().unwrap() };
                let joined: Vec<f64> = base
                    .iter()
                    .zip(&branch)
                    .map(|(b, y)| f64::from(*b) * 3.5 + f64::from(*y) * 0.5)
                    .collect();
                let scale = Scale { alpha: 3.5, beta: 0.5, postnorm };
                let rows_of = Branch::Rows(&device_branch);
                let mut exact = Activations::zeroed(&cuda, Element::F32, rows * width).unwrap();
                // As a copy in f32 the first time, then rounded.
                let kept = if postnorm { &mut exact } else { &mut kept };
                // And from a normed stream that lies elsewhere, the first time.
                let mut elsewhere = DeviceRows::zeroed(&cuda, rows, width, element).unwrap();
                if postnorm {
                    std::mem::swap(&mut elsewhere, &mut stream.normed);
                }
                let what = Kept { stream: Some(kept), normed: postnorm.then_some(&elsewhere) };
                norms_of.join(rows, rows_of, None, scale, Some(norm), &mut stream, what).unwrap();
                let of_kept = if postnorm { 1e-6 } else { tolerance(element) };
                assert_close(&kept.to_f32().unwrap(), &joined, of_kept, "what is kept");
                let expected = norms(&joined, &widen(&weight), width);
                let got = stream.normed.data().to_f32().unwrap();
                assert_close(&got, &expected, tolerance(element), "normed after a branch");
                if !postnorm {
                    assert_close(&stream.x.to_vec().unwrap(), &joined, 1e-6, "the stream");
                }
            }
            let before = stream.x.to_vec().unwrap();
            let scale = Scale { alpha: 1.0, beta: 1.0, postnorm: false };
            norms_of
                .join(rows, Branch::Rows(&device_branch), None, scale, None, &mut stream, Kept::default())
                .unwrap();
            let joined: Vec<f64> =
                before.iter().zip(&branch).map(|(b, y)| f64::from(*b) + f64::from(*y)).collect();
            assert_close(&stream.x.to_vec().unwrap(), &joined, 1e-6, "the stream without a norm");
        }
    }
}

#[test]
fn choices_of_experts_are_weighed_and_a_shared_mlp_mixed_in() {
    let Some(cuda) = gpu() else { return };
    let mut random = Random::new(2);
    let (rows, width, choices) = (3, 72, 2);
    let norms_of = Norms::new(&cuda, width, Element::F32, Element::F32).unwrap();
    let (experts, shared) = (random.normal(rows * choices * width), random.normal(rows * width));
    let (weights, coefficients) = (random.normal(rows * choices), random.normal(rows));
    // The last row chooses nobody.
    let places = [4, 0, 1, 3, -1, -1];
    let [weights_of, coefficients_of] =
        [&weights, &coefficients].map(|x| Buffer::from_slice(&cuda, x).unwrap());
    let [experts_of, shared_of] =
        [&experts, &shared].map(|x| Activations::from_f32(&cuda, Element::F32, x).unwrap());
    let device_places = Buffer::from_slice(&cuda, &places).unwrap();
    let mut stream = Stream::zeroed(&cuda, rows, width, Element::F32).unwrap();
    for with_shared in [false, true] {
        let base = stream.x.to_vec().unwrap();
        let expected: Vec<f64> = (0..rows * width)
            .map(|i| {
                let (t, c) = (i / width, i % width);
                let chosen = (0..choices).filter(|slot| places[t * choices + slot] >= 0);
                let sum: f64 = chosen
                    .map(|slot| {
                        let place = places[t * choices + slot] as usize;
                        f64::from(weights[t * choices + slot]) * f64::from(experts[place * width + c])
                    })
                    .sum();
                let open = 1.0 / (1.0 + (-f64::from(coefficients[t])).exp());
                let open = if with_shared { open } else { 0.0 };
                2.0 * f64::from(base[i]) + (1.0 - open) * sum + open * f64::from(shared[i])
            })
            .collect();
        let branch =
            Branch::Choices { rows: &experts_of, places: &device_places, weights: &weights_of, choices };
        let mixed = with_shared.then_some(Shared { rows: &shared_of, coefficients: &coefficients_of });
        let scale = Scale { alpha: 2.0, beta: 1.0, postnorm: false };
        norms_of.join(rows, branch, mixed, scale, None, &mut stream, Kept::default()).unwrap();
        assert_close(&stream.x.to_vec().unwrap(), &expected, 1e-6, "joined");
    }
}

#[test]
fn gated_norms_agree_with_the_reference() {
    let Some(cuda) = gpu() else { return };
    let mut random = Random::new(3);
    for element in [Element::F32, Element::Bf16] {
        let round = |x: Vec<f32>| if element == Element::Bf16 { bf16_round(&x) } else { x };
        for (rows, width, stride) in
            [(1, 8, 16), (3, 12, 20), (4, 128, 512), (9, 1536, 1544), (2, 8192, 8200)]
        {
            let norms_of = Norms::new(&cuda, 64, element, element).unwrap();
            let attended = round(random.normal(rows * width));
            let gates = round(random.normal(rows * stride));
            let weight = random.normal(width);
            let device_weight = Buffer::from_slice(&cuda, &weight).unwrap();
            let norm = Norm { weight: &device_weight, epsilon: EPSILON };
            let mut out = DeviceRows::zeroed(&cuda, rows, width, element).unwrap();
            let [a, g] = [&attended, &gates].map(|x| Activations::from_f32(&cuda, element, x).unwrap());
            let first = stride - width;
            norms_of.gated_norm(rows, &a, (&g, first, stride), norm, &mut out).unwrap();
            let mut expected = norms(&widen(&attended), &widen(&weight), width);
            for (i, value) in expected.iter_mut().enumerate() {
                *value *= f64::from(gates[i / width * stride + first + i % width]);
            }
            assert_close(&out.data().to_f32().unwrap(), &expected, tolerance(element), "gated");
        }
    }
}

#[test]
fn rows_for_the_head_are_normed_and_their_parts_add_up_to_16_bits_of_them() {
    let Some(cuda) = gpu() else { return };
    let mut random = Random::new(4);
    let (rows, width) = (20, 96);
    let norms_of = Norms::new(&cuda, width, Element::Bf16, Element::Bf16).unwrap();
    let mut stream = Stream::zeroed(&cuda, rows, width, Element::Bf16).unwrap();
    let (x, weight) = (random.normal(rows * width), random.normal(width));
    stream.x.write(0, &x).unwrap();
    let chosen = [3, 0, 19, 7, 7, 1, 2, 4, 5, 6, 11];
    let device_weight = Buffer::from_slice(&cuda, &weight).unwrap();
    let norm = Norm { weight: &device_weight, epsilon: EPSILON };
    let mut normed = DeviceRows::zeroed(&cuda, 16, width, Element::F32).unwrap();
    let mut parts = DeviceRows::zeroed(&cuda, 16 * PARTS, width, Element::Bf16).unwrap();
    let indices = Buffer::from_slice(&cuda, &chosen).unwrap();
    norms_of.head_rows(&stream, &indices, chosen.len(), norm, &mut normed, Some(&mut parts)).unwrap();
    let (normed, parts) = (normed.data().to_f32().unwrap(), parts.data().to_f32().unwrap());
    let picked: Vec<f64> = chosen.iter().flat_map(|r| widen(&x[*r as usize * width..][..width])).collect();
    assert_close(&normed[..chosen.len() * width], &norms(&picked, &widen(&weight), width), 2e-6, "normed");
    for r in 0..chosen.len() {
        for c in 0..width {
            let part = |p: usize| parts[(r / 8 * 8 * PARTS + p * 8 + r % 8) * width + c];
            let (sum, whole) = ((0..PARTS).rev().map(part).sum::<f32>(), normed[r * width + c]);
            assert!((sum - whole).abs() <= whole.abs() / 65536.0, "{sum} for {whole}");
        }
    }
}

#[test]
fn kernels_compile_for_every_architecture() {
    for (width, element) in [(6144, Element::Bf16), (100, Element::F32)] {
        assert_compiles(SOURCE, &defines(width, element, Element::F32), &CARDS);
    }
}
