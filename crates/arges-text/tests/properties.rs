//! Streams give what the whole gives, however they are cut.

mod common;

use std::sync::LazyLock;

use arges_text::{Detokenizer, StopStrings, Tokenizer};
use common::synthetic;
use proptest::prelude::*;

static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| synthetic(512));

/// Text of ordinary, wide, combined and control characters, and of the turn markers.
fn any_text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        any::<char>().prop_map(String::from),
        "[a-z ]{1,8}",
        "[\\s]{1,4}",
        prop::sample::select(vec![
            "日本",
            "😀",
            "👩‍👧",
            "é",
            "<end_of_sentence>",
            "<end_of_",
            "\u{FFFD}",
            "\0"
        ])
        .prop_map(String::from),
    ];
    prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

/// The place and number of the stop string that ends first in `text`, the longest of those, found
/// by looking at every end.
fn search(text: &str, stops: &[String]) -> Option<(usize, usize)> {
    (0..=text.len()).find_map(|end| {
        let at_end = |stop: &String| !stop.is_empty() && text.as_bytes()[..end].ends_with(stop.as_bytes());
        let ending = stops.iter().enumerate().filter(|(_, stop)| at_end(stop));
        let longest = ending.rev().max_by_key(|(_, stop)| stop.len());
        longest.map(|(index, stop)| (end - stop.len(), index))
    })
}

fn split_at_chars(text: &str, lengths: &[usize]) -> Vec<String> {
    let mut chars = text.chars();
    let mut pieces: Vec<String> =
        lengths.iter().map(|length| chars.by_ref().take(*length).collect()).collect();
    pieces.push(chars.collect());
    pieces
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_token_stream_pushed_one_by_one_gives_the_text_of_the_whole(
        ids in prop::collection::vec(prop_oneof![0u32..520, 128u32..256], 0..64),
    ) {
        let whole = TOKENIZER.decode(&ids);
        let bytes: Vec<u8> = ids.iter().filter_map(|id| TOKENIZER.token_bytes(*id)).flatten().collect();
        prop_assert_eq!(&whole, &String::from_utf8_lossy(&bytes));

        let mut streams = [
            (Detokenizer::new(TOKENIZER.clone()), whole),
            (Detokenizer::skipping_special(TOKENIZER.clone()), TOKENIZER.decode_skip_special(&ids)),
        ];
        for (detokenizer, whole) in &mut streams {
            let mut text: String = ids.iter().map(|id| detokenizer.push(*id)).collect();
            text += &detokenizer.finish();
            prop_assert_eq!(&text, whole);
            prop_assert_eq!(detokenizer.finish(), "");
        }
    }

    #[test]
    fn the_bytes_of_a_text_come_out_as_whole_characters_and_as_soon_as_they_are(text in any_text()) {
        let mut detokenizer = Detokenizer::new(TOKENIZER.clone());
        for char in text.chars() {
            let bytes = char.to_string().into_bytes();
            let (last, first) = bytes.split_last().unwrap();
            for byte in first {
                prop_assert_eq!(detokenizer.push(u32::from(*byte)), "");
            }
            prop_assert_eq!(detokenizer.push(u32::from(*last)), char.to_string());
        }
        prop_assert_eq!(detokenizer.finish(), "");
    }

    #[test]
    fn any_text_encodes_and_decodes_to_itself(text in any_text()) {
        let ids = TOKENIZER.encode(&text).unwrap();
        prop_assert_eq!(TOKENIZER.decode(&ids), text);
    }

    #[test]
    fn stop_strings_over_any_split_equal_the_search_on_the_whole(
        text in "[abé]{0,40}",
        stops in prop::collection::vec("[abé]{0,6}", 0..4),
        lengths in prop::collection::vec(0usize..5, 0..20),
    ) {
        let mut matcher = StopStrings::new(stops.clone());
        let (mut emitted, mut seen, mut stopped) = (String::new(), String::new(), None);
        for piece in split_at_chars(&text, &lengths) {
            let output = matcher.push(&piece);
            emitted += &output.text;
            seen += &piece;
            stopped = output.stopped;
            if stopped.is_some() {
                break;
            }
            let held = &seen[emitted.len()..];
            let longest = (0..=seen.len())
                .filter(|start| seen.is_char_boundary(*start))
                .find(|start| stops.iter().any(|stop| stop.starts_with(&seen[*start..])))
                .map_or("", |start| &seen[start..]);
            prop_assert_eq!(held, longest);
        }
        emitted += &matcher.finish();
        match search(&text, &stops) {
            Some((start, index)) => {
                prop_assert_eq!(stopped, Some(index));
                prop_assert_eq!(emitted, &text[..start]);
            }
            None => {
                prop_assert_eq!(stopped, None);
                prop_assert_eq!(emitted, text);
            }
        }
    }
}
