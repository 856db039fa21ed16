//! The byte-level alphabet of GPT-2: every byte has a printable character that stands for it in
//! vocabulary files. Printable Latin-1 bytes stand for themselves; the others, in order, for the
//! characters from U+0100 on.

/// The character that stands for each byte.
pub(crate) fn byte_chars() -> [char; 256] {
    let mut chars = ['\0'; 256];
    let mut stand_in = (0x100..).filter_map(char::from_u32);
    for (byte, slot) in (0..=255u8).zip(&mut chars) {
        let printable = matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
        *slot = if printable { char::from(byte) } else { stand_in.next().unwrap_or_default() };
    }
    chars
}

/// Turns vocabulary entries back into the bytes they stand for.
pub(crate) struct ByteDecoder {
    /// Byte of each alphabet character; the alphabet ends below U+0144.
    bytes: [Option<u8>; 0x144],
}

impl ByteDecoder {
    pub(crate) fn new() -> Self {
        let mut bytes = [None; 0x144];
        for (byte, char) in (0..=255u8).zip(byte_chars()) {
            bytes[char as usize] = Some(byte);
        }
        Self { bytes }
    }

    /// Appends the bytes of `token`; an entry with a character outside the alphabet stands for its
    /// own UTF-8, as in Hugging Face's byte-level decoder.
    pub(crate) fn decode_into(&self, token: &str, out: &mut Vec<u8>) {
        let start = out.len();
        for char in token.chars() {
            match self.bytes.get(char as usize).copied().flatten() {
                Some(byte) => out.push(byte),
                None => {
                    out.truncate(start);
                    out.extend_from_slice(token.as_bytes());
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alphabet_has_the_characters_vocabulary_files_use() {
        let chars = byte_chars();
        assert_eq!(chars[0], 'Ā');
        assert_eq!(chars[usize::from(b' ')], 'Ġ');
        assert_eq!(chars[usize::from(b'\n')], 'Ċ');
        assert_eq!(chars[usize::from(b'a')], 'a');
        assert_eq!(chars[0xAD], 'Ń');
        assert_eq!(chars[0xFF], 'ÿ');
    }

    #[test]
    fn every_byte_comes_back_from_its_character() {
        let token: String = byte_chars().iter().collect();
        let mut bytes = Vec::new();
        ByteDecoder::new().decode_into(&token, &mut bytes);
        assert_eq!(bytes, (0..=255u8).collect::<Vec<_>>());
    }

    #[test]
    fn an_entry_outside_the_alphabet_stands_for_its_own_utf8() {
        let mut bytes = vec![1];
        ByteDecoder::new().decode_into("a 日", &mut bytes);
        assert_eq!(bytes, [&[1], "a 日".as_bytes()].concat());
    }
}
