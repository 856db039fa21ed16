use super::cuda::*;
use super::reference;
use crate::device::cuda::{Activations, Buffer};
use crate::matmul::Element;
use crate::matmul::cuda::DeviceRows;
use crate::testing::{CARDS, Random, assert_close, assert_compiles, bf16_round, gpu, widen};

#[test]
fn routing_agrees_with_the_reference_and_groups_rows_by_expert_in_their_order() {
    let Some(cuda) = gpu() else { return };
    let mut random = Random::new(1);
    for (rows, active, width, experts, choices) in [
        (1, 1, 8, 4, 2),
        (7, 5, 64, 32, 2),
        (63, 63, 72, 5, 1),
        (257, 200, 128, 33, 3),
        (3000, 3000, 32, 32, 2),
        (5001, 4990, 200, 7, 2),
    ] {
        let router = Router::new(&cuda, width, experts, choices, [Element::F32; 2]).unwrap();
        let (x, w) = (random.normal(rows * width), random.normal(experts * width));
        let mut device_x = DeviceRows::zeroed(&cuda, rows, width, Element::F32).unwrap();
        *device_x.data_mut() = Activations::from_f32(&cuda, Element::F32, &x).unwrap();
        let weights = Activations::from_f32(&cuda, Element::F32, &w).unwrap();
        let mut routing = DeviceRouting::zeroed(&cuda, rows, experts, choices).unwrap();
        let count = Buffer::from_slice(&cuda, &[active as i32]).unwrap();
        router.route(&device_x, rows, &count, &weights, &mut routing).unwrap();

        let logits = crate::matmul::reference::matmul(&widen(&x), &widen(&w), width);
        assert_close(&routing.logits.to_vec().unwrap(), &logits, 1e-5, "logits");
        let (chosen, got) = (routing.chosen.to_vec().unwrap(), routing.weights.to_vec().unwrap());
        let got_logits = routing.logits.to_vec().unwrap();
        let mut order: Vec<(i32, usize)> = Vec::new();
        for t in 0..rows {
            // The device's own logits, so that a tie in f64 that is none in f32 does not matter.
            let expected = reference::route(&widen(&got_logits[t * experts..][..experts]), choices);
            for (slot, (expert, weight)) in expected.into_iter().enumerate() {
                let at = t * choices + slot;
                if t < active {
                    assert_eq!(chosen[at], expert as i32, "row {t}");
                    assert!((f64::from(got[at]) - weight).abs() < 1e-6, "row {t}");
                    order.push((chosen[at], at));
                } else {
                    assert_eq!(chosen[at], experts as i32, "row {t} is padding");
                }
            }
        }
        order.sort_unstable();
        let (places, sources) = (routing.places.to_vec().unwrap(), routing.sources.to_vec().unwrap());
        let offsets = routing.offsets.to_vec().unwrap();
        for (place, (expert, at)) in order.iter().enumerate() {
            assert_eq!((places[*at], sources[place]), (place as i32, (at / choices) as i32));
            let range = offsets[*expert as usize]..offsets[*expert as usize + 1];
            assert!(range.contains(&(place as i32)), "{place} in {range:?}");
        }
        assert_eq!(offsets[experts] as usize, order.len());
        let serving = (0..experts).filter(|e| offsets[*e] < offsets[e + 1]).count();
        assert_eq!(routing.used.to_vec().unwrap(), [serving as i32]);
        assert!(places[active * choices..].iter().all(|place| *place == -1));

        let values = bf16_round(&x);
        let mut from = DeviceRows::zeroed(&cuda, rows, width, Element::Bf16).unwrap();
        *from.data_mut() = Activations::from_f32(&cuda, Element::Bf16, &values).unwrap();
        let of_bf16 = Router::new(&cuda, width, experts, choices, [Element::Bf16, Element::F32]).unwrap();
        let mut got = Buffer::zeroed(&cuda, rows * experts).unwrap();
        of_bf16.logits(&from, rows, &weights, &mut got).unwrap();
        let logits = crate::matmul::reference::matmul(&widen(&values), &widen(&w), width);
        assert_close(&got.to_vec().unwrap(), &logits, 1e-5, "logits of bf16 rows");
        let mut to = DeviceRows::zeroed(&cuda, rows * choices, width, Element::Bf16).unwrap();
        router.gather(&from, rows, &routing, &mut to).unwrap();
        let gathered = to.data().to_f32().unwrap();
        for (place, source) in sources[..order.len()].iter().enumerate() {
            assert_eq!(gathered[place * width..][..width], values[*source as usize * width..][..width]);
        }
    }
}

#[test]
fn among_equal_logits_the_lower_expert_comes_first() {
    let Some(cuda) = gpu() else { return };
    let router = Router::new(&cuda, 8, 4, 3, [Element::F32; 2]).unwrap();
    let mut x = DeviceRows::zeroed(&cuda, 1, 8, Element::F32).unwrap();
    let row = [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
    *x.data_mut() = Activations::from_f32(&cuda, Element::F32, &row).unwrap();
    for (logits, expected) in [([1.0, 1.0, 1.0, 1.0], [0, 1, 2]), ([5.0, 5.0, 7.0, 5.0], [2, 0, 1])] {
        let mut w = [0.0f32; 32];
        (0..4).for_each(|e| w[8 * e] = logits[e]);
        let weights = Activations::from_f32(&cuda, Element::F32, &w).unwrap();
        let mut routing = DeviceRouting::zeroed(&cuda, 1, 4, 3).unwrap();
        let one = Buffer::from_slice(&cuda, &[1]).unwrap();
        router.route(&x, 1, &one, &weights, &mut routing).unwrap();
        assert_eq!(routing.chosen.to_vec().unwrap(), expected);
    }
}

#[test]
fn kernels_compile_for_every_architecture() {
    assert_compiles(SOURCE, &defines(Element::Bf16, Element::Bf16, 2), &CARDS);
}
