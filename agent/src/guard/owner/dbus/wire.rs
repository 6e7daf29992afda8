//! D-Bus messages as bytes: what is needed to call a method and to read its answer; pure.
//!
//! After the D-Bus specification, "Message Protocol" and "Marshaling": little-endian, every value
//! aligned to its own size counted from the start of the message.

/// Longest message that is read, bytes. What is asked for here is far shorter.
pub(crate) const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// Bytes of a message's start that tell how long it is.
pub(crate) const START_BYTES: usize = 16;

const METHOD_CALL: u8 = 1;
const METHOD_RETURN: u8 = 2;
const ERROR: u8 = 3;

const FIELD_PATH: u8 = 1;
const FIELD_INTERFACE: u8 = 2;
const FIELD_MEMBER: u8 = 3;
const FIELD_ERROR_NAME: u8 = 4;
const FIELD_REPLY_SERIAL: u8 = 5;
const FIELD_DESTINATION: u8 = 6;
const FIELD_SIGNATURE: u8 = 8;

/// A value of one of the types that are used here.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    /// `b`
    Bool(bool),
    /// `u`
    U32(u32),
    /// `t`
    U64(u64),
    /// `s`
    Text(String),
    /// `o`
    Path(String),
    /// `a(sv)`: names with values.
    Properties(Vec<(String, Value)>),
    /// `a(sa(sv))`: what `StartTransientUnit` calls auxiliary units; always empty here.
    NoUnits,
}

impl Value {
    fn signature(&self) -> &'static str {
        match self {
            Self::Bool(_) => "b",
            Self::U32(_) => "u",
            Self::U64(_) => "t",
            Self::Text(_) => "s",
            Self::Path(_) => "o",
            Self::Properties(_) => "a(sv)",
            Self::NoUnits => "a(sa(sv))",
        }
    }
}

/// A method to call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call<'a> {
    /// Bus name of the callee.
    pub(crate) destination: &'a str,
    /// Object path.
    pub(crate) path: &'a str,
    /// Interface.
    pub(crate) interface: &'a str,
    /// Method.
    pub(crate) member: &'a str,
}

/// What a message that was read is about.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Incoming {
    /// The answer to the call with this serial: its first value, if it has one of a type known here.
    Return(u32, Option<Value>),
    /// The call with this serial failed: name of the error, and its text.
    Error(u32, String, String),
    /// A signal, or a call to us; nobody waits for it.
    Other,
}

/// The bytes of a call.
pub(crate) fn encode(call: &Call<'_>, serial: u32, arguments: &[Value]) -> Vec<u8> {
    let mut body = Writer::default();
    arguments.iter().for_each(|value| body.value(value));
    let signature: String = arguments.iter().map(Value::signature).collect();

    let mut message = Writer::default();
    message.0.extend_from_slice(&[b'l', METHOD_CALL, 0, 1]);
    message.u32(length_of(&body.0));
    message.u32(serial);
    let fields_at = message.open_array(8);
    for (code, text) in [
        (FIELD_PATH, Value::Path(call.path.to_owned())),
        (FIELD_INTERFACE, Value::Text(call.interface.to_owned())),
        (FIELD_MEMBER, Value::Text(call.member.to_owned())),
        (FIELD_DESTINATION, Value::Text(call.destination.to_owned())),
    ] {
        message.align(8);
        message.0.push(code);
        message.variant(&text);
    }
    if !signature.is_empty() {
        message.align(8);
        message.0.push(FIELD_SIGNATURE);
        message.signature("g");
        message.signature(&signature);
    }
    message.close_array(fields_at, 8);
    message.align(8);
    message.0.extend(body.0);
    message.0
}

fn length_of(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}

/// How many bytes the message that begins with `start` has in all.
///
/// # Errors
/// A sentence, when it is no message, of the other byte order, or too long.
pub(crate) fn length(start: &[u8; START_BYTES]) -> Result<usize, String> {
    if start[0] != b'l' || start[3] != 1 {
        return Err(format!("{:?} does not begin a little-endian message", &start[..4]));
    }
    let mut reader = Reader { bytes: start, at: 4 };
    let body = reader.u32()? as usize;
    reader.at = 12;
    let fields = reader.u32()? as usize;
    let total = START_BYTES
        .checked_add(fields)
        .map(|header| header.next_multiple_of(8))
        .and_then(|header| header.checked_add(body))
        .filter(|&total| total <= MESSAGE_BYTES_MAX);
    total.ok_or_else(|| format!("a message of {fields} and {body} bytes is too long"))
}

/// Reads a whole message.
///
/// # Errors
/// A sentence, when it is not well formed.
pub(crate) fn decode(message: &[u8]) -> Result<Incoming, String> {
    let kind = *message.get(1).ok_or("the message is empty")?;
    let mut reader = Reader { bytes: message, at: 12 };
    let fields_end = reader.u32()? as usize + START_BYTES;
    let (mut reply_to, mut error_name, mut signature) = (0, String::new(), String::new());
    while reader.at < fields_end {
        reader.align(8);
        let code = reader.byte()?;
        let inner = reader.signature()?;
        match (code, inner.as_str()) {
            (FIELD_REPLY_SERIAL, "u") => reply_to = reader.u32()?,
            (FIELD_ERROR_NAME, "s") => error_name = reader.text()?,
            (FIELD_SIGNATURE, "g") => signature = reader.signature()?,
            (_, "u") => reader.u32().map(drop)?,
            (_, "s" | "o") => reader.text().map(drop)?,
            (_, "g") => reader.signature().map(drop)?,
            (code, other) => return Err(format!("header field {code} has type {other:?}")),
        }
    }
    reader.at = fields_end.next_multiple_of(8);
    match kind {
        METHOD_RETURN => {
            Ok(Incoming::Return(reply_to, reader.first(signature.as_bytes()).transpose()?))
        }
        ERROR => {
            let text = match reader.first(signature.as_bytes()) {
                Some(Ok(Value::Text(text))) => text,
                _ => String::new(),
            };
            Ok(Incoming::Error(reply_to, error_name, text))
        }
        _ => Ok(Incoming::Other),
    }
}

#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn align(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    fn u32(&mut self, value: u32) {
        self.align(4);
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.u32(length_of(text.as_bytes()));
        self.0.extend_from_slice(text.as_bytes());
        self.0.push(0);
    }

    fn signature(&mut self, text: &str) {
        self.0.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
        self.0.extend_from_slice(text.as_bytes());
        self.0.push(0);
    }

    fn variant(&mut self, value: &Value) {
        self.signature(value.signature());
        self.value(value);
    }

    /// Where the length of an array is filled in later. The padding before its first element is
    /// not part of that length.
    fn open_array(&mut self, element_align: usize) -> usize {
        self.u32(0);
        let at = self.0.len() - 4;
        self.align(element_align);
        at
    }

    fn close_array(&mut self, at: usize, element_align: usize) {
        let start = (at + 4).next_multiple_of(element_align);
        let length = length_of(&self.0[start..]);
        self.0[at..at + 4].copy_from_slice(&length.to_le_bytes());
    }

    fn value(&mut self, value: &Value) {
        match value {
            Value::Bool(flag) => self.u32(u32::from(*flag)),
            Value::U32(number) => self.u32(*number),
            Value::U64(number) => {
                self.align(8);
                self.0.extend_from_slice(&number.to_le_bytes());
            }
            Value::Text(text) | Value::Path(text) => self.text(text),
            Value::Properties(properties) => {
                let at = self.open_array(8);
                for (name, value) in properties {
                    self.align(8);
                    self.text(name);
                    self.variant(value);
                }
                self.close_array(at, 8);
            }
            Value::NoUnits => {
                let at = self.open_array(8);
                self.close_array(at, 8);
            }
        }
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let end = self.at.checked_add(count);
        let taken = end.and_then(|end| self.bytes.get(self.at..end));
        self.at = end.unwrap_or(usize::MAX);
        taken.ok_or_else(|| format!("the message ends within a value of {count} bytes"))
    }

    fn byte(&mut self) -> Result<u8, String> {
        Ok(self.take(1)?[0])
    }

    fn u32(&mut self) -> Result<u32, String> {
        self.align(4);
        let b = self.take(4)?;
        Ok(u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    }

    fn u64(&mut self) -> Result<u64, String> {
        self.align(8);
        let b = self.take(8)?;
        Ok(u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]))
    }

    fn text(&mut self) -> Result<String, String> {
        let length = self.u32()? as usize;
        let text = String::from_utf8_lossy(self.take(length)?).into_owned();
        self.take(1)?;
        Ok(text)
    }

    fn signature(&mut self) -> Result<String, String> {
        let length = usize::from(self.byte()?);
        let text = String::from_utf8_lossy(self.take(length)?).into_owned();
        self.take(1)?;
        Ok(text)
    }

    /// The first value of a body; `None` when it has none, or one of another type.
    fn first(&mut self, signature: &[u8]) -> Option<Result<Value, String>> {
        let value = match signature.first()? {
            b's' => self.text().map(Value::Text),
            b'o' => self.text().map(Value::Path),
            b'b' => self.u32().map(|number| Value::Bool(number != 0)),
            b'u' => self.u32().map(Value::U32),
            b't' => self.u64().map(Value::U64),
            b'v' => match self.signature() {
                // A variant in a variant is legal and nobody here sends one; one level is enough.
                Ok(inner) if !inner.starts_with('v') => return self.first(inner.as_bytes()),
                Ok(inner) => Err(format!("a value of type {inner:?}")),
                Err(error) => Err(error),
            },
            _ => return None,
        };
        Some(value)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::{collection::vec, proptest};

    use super::{Call, Incoming, START_BYTES, Value, Writer, decode, encode, length, length_of};

    /// An answer as a bus would send it.
    pub(crate) fn answer(serial: u32, reply: &Result<Option<Value>, (&str, &str)>) -> Vec<u8> {
        let mut body = Writer::default();
        let mut signature = "";
        match reply {
            Ok(Some(value)) => {
                body.variant(value);
                signature = "v";
            }
            Ok(None) => {}
            Err((_, text)) => {
                body.text(text);
                signature = "s";
            }
        }
        let mut message = Writer::default();
        message.0.extend_from_slice(&[b'l', if reply.is_ok() { 2 } else { 3 }, 1, 1]);
        message.u32(length_of(&body.0));
        message.u32(7);
        let at = message.open_array(8);
        message.0.push(5);
        message.variant(&Value::U32(serial));
        if let Err((name, _)) = reply {
            message.align(8);
            message.0.push(4);
            message.variant(&Value::Text((*name).to_owned()));
        }
        message.align(8);
        message.0.push(8);
        message.signature("g");
        message.signature(signature);
        message.close_array(at, 8);
        message.align(8);
        message.0.extend(body.0);
        message.0
    }

    fn total(message: &[u8]) -> usize {
        length(message[..START_BYTES].try_into().unwrap()).unwrap()
    }

    #[test]
    fn a_call_has_the_length_it_announces_whatever_its_arguments() {
        let call = Call { destination: "a.b", path: "/a", interface: "a.b.C", member: "Do" };
        let property = ("MemoryHigh".to_owned(), Value::U64(u64::MAX));
        for arguments in [
            vec![],
            vec![Value::Text("x.service".to_owned())],
            vec![
                Value::Text("x".to_owned()),
                Value::Bool(true),
                Value::Properties(vec![property.clone(), property]),
            ],
            vec![Value::Properties(vec![]), Value::NoUnits],
        ] {
            let message = encode(&call, 3, &arguments);
            assert_eq!(total(&message), message.len(), "{arguments:?}");
            assert_eq!(decode(&message), Ok(Incoming::Other));
        }
    }

    #[test]
    fn the_bytes_of_a_call_are_those_of_the_specification() {
        let call = Call { destination: "d.d", path: "/", interface: "i.i", member: "M" };
        let message = encode(&call, 1, &[Value::Bool(true)]);
        let expected: &[u8] = &[
            b'l', 1, 0, 1, 4, 0, 0, 0, 1, 0, 0, 0, 71, 0, 0, 0, //
            1, 1, b'o', 0, 1, 0, 0, 0, b'/', 0, 0, 0, 0, 0, 0, 0, //
            2, 1, b's', 0, 3, 0, 0, 0, b'i', b'.', b'i', 0, 0, 0, 0, 0, //
            3, 1, b's', 0, 1, 0, 0, 0, b'M', 0, 0, 0, 0, 0, 0, 0, //
            6, 1, b's', 0, 3, 0, 0, 0, b'd', b'.', b'd', 0, 0, 0, 0, 0, //
            8, 1, b'g', 0, 1, b'b', 0, 0, 1, 0, 0, 0,
        ];
        assert_eq!(message[..80], expected[..80]);
        assert_eq!(message[80..], expected[80..]);
    }

    #[test]
    fn answers_are_read() {
        for value in [Value::U64(5), Value::Text("é".to_owned()), Value::Bool(true)] {
            let message = answer(9, &Ok(Some(value.clone())));
            assert_eq!(total(&message), message.len());
            assert_eq!(decode(&message), Ok(Incoming::Return(9, Some(value))));
        }
        assert_eq!(decode(&answer(9, &Ok(None))), Ok(Incoming::Return(9, None)));
        let error = decode(&answer(9, &Err(("a.NoSuchUnit", "no"))));
        assert_eq!(error, Ok(Incoming::Error(9, "a.NoSuchUnit".to_owned(), "no".to_owned())));
    }

    #[test]
    fn lengths_that_cannot_be_are_refused() {
        let mut start = [0; START_BYTES];
        assert!(length(&start).is_err());
        start[0] = b'l';
        start[3] = 1;
        assert_eq!(length(&start), Ok(START_BYTES));
        start[4..8].fill(0xff);
        assert!(length(&start).is_err());
        start[12..16].fill(0xff);
        assert!(length(&start).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_err(bytes in vec(0u8.., 0..200)) {
            drop(decode(&bytes));
        }

        #[test]
        fn any_flipped_byte_decodes_or_errs(at in 0usize..120, to in 0u8..) {
            let mut message = answer(9, &Ok(Some(Value::Text("x".to_owned()))));
            let at = at % message.len();
            message[at] = to;
            drop(decode(&message));
        }
    }
}
