//! Reads the layout of kernel structures from BTF, the type information a kernel carries.
//!
//! Only what finding fields takes: structures, unions, arrays, pointers, enumerators, and the arguments
//! of tracepoints. Every access is bounds-checked; a damaged or unknown blob is an error, never a panic.

use std::collections::{BTreeMap, HashMap};

use thiserror::Error;

/// Why a field could not be found.
#[derive(Debug, Error, Eq, PartialEq)]
pub enum BtfError {
    /// The blob is not BTF of this machine's byte order.
    #[error("not BTF of this machine (magic {magic:#06x})")]
    Magic {
        /// The first two bytes.
        magic: u16,
    },
    /// The blob ends within something, or refers outside of itself.
    #[error("BTF ends early or points outside itself at byte {offset}")]
    OutOfBounds {
        /// Where in the blob.
        offset: usize,
    },
    /// The blob has a kind of type that did not exist when this was written.
    #[error("BTF type {id} has the unknown kind {kind}")]
    UnknownKind {
        /// The type.
        id: usize,
        /// Its kind.
        kind: u32,
    },
    /// The kernel has no such structure.
    #[error("this kernel has no struct {name}")]
    NoStruct {
        /// Its name.
        name: String,
    },
    /// The structure has no such field.
    #[error("this kernel has no {structure}.{member}")]
    NoMember {
        /// The structure.
        structure: String,
        /// The field.
        member: String,
    },
    /// The kernel has no such enumerator.
    #[error("this kernel has no enumerator {name}")]
    NoEnumerator {
        /// Its name.
        name: String,
    },
    /// The field is said to end behind its structure.
    #[error("{structure}.{member} ends at byte {end} of {size}")]
    OutsideStructure {
        /// The structure.
        structure: String,
        /// The field.
        member: String,
        /// Where the field would end, bytes from the structure's begin.
        end: u64,
        /// The structure's size, bytes.
        size: u64,
    },
    /// The field exists but is of another type.
    #[error("{path} is not {expected}")]
    WrongType {
        /// The field.
        path: String,
        /// What it was taken for.
        expected: String,
    },
}

/// Pointers of every kernel that runs these programs.
const POINTER_BYTES: u64 = 8;
/// Deepest chain of typedefs, qualifiers or nested anonymous structures that is followed.
const DEPTH_MAX: usize = 32;
const HEADER_BYTES: usize = 24;

mod kind {
    pub(super) const INT: u32 = 1;
    pub(super) const PTR: u32 = 2;
    pub(super) const ARRAY: u32 = 3;
    pub(super) const STRUCT: u32 = 4;
    pub(super) const UNION: u32 = 5;
    pub(super) const ENUM: u32 = 6;
    pub(super) const FWD: u32 = 7;
    pub(super) const TYPEDEF: u32 = 8;
    pub(super) const VOLATILE: u32 = 9;
    pub(super) const CONST: u32 = 10;
    pub(super) const RESTRICT: u32 = 11;
    pub(super) const FUNC_PROTO: u32 = 13;
    pub(super) const VAR: u32 = 14;
    pub(super) const DATASEC: u32 = 15;
    pub(super) const DECL_TAG: u32 = 17;
    pub(super) const TYPE_TAG: u32 = 18;
    pub(super) const ENUM64: u32 = 19;
    pub(super) const LAST: u32 = ENUM64;
}

/// A parsed blob.
pub(super) struct Btf<'a> {
    blob: &'a [u8],
    /// Position of each type in `blob`; type 0 is `void` and has none.
    types: Vec<usize>,
    strings: &'a [u8],
    /// Structures and unions with members, by name; the first wins.
    structures: HashMap<&'a [u8], u32>,
}

#[derive(Clone, Copy)]
struct Type {
    position: usize,
    name: u32,
    kind: u32,
    has_bitfields: bool,
    n_items: usize,
    /// Size in bytes, or the type referred to.
    size_or_type: u32,
}

#[derive(Clone, Copy)]
struct Member {
    offset_bits: u64,
    type_id: u32,
    /// Bits of it when it is a bit field, else zero.
    bits: u64,
}

/// What a tracepoint hands to programs in one place.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Argument {
    /// A pointer to a structure of this name, empty for a pointer to anything else.
    Pointer(String),
    /// A number or a structure by value, of `bytes`.
    Value { bytes: u64 },
}

impl<'a> Btf<'a> {
    /// Indexes `blob`.
    ///
    /// # Errors
    /// When it is not BTF of this byte order, ends early, or has a kind of type not known here.
    pub(super) fn parse(blob: &'a [u8]) -> Result<Self, BtfError> {
        let magic = u16::from_ne_bytes(array_at(blob, 0)?);
        if magic != 0xeb9f {
            return Err(BtfError::Magic { magic });
        }
        let header_bytes = word_at(blob, 4)? as usize;
        if header_bytes < HEADER_BYTES {
            return Err(BtfError::OutOfBounds { offset: 4 });
        }
        let section = |field: usize| -> Result<(usize, usize), BtfError> {
            let outside = || BtfError::OutOfBounds { offset: field };
            let start = header_bytes.checked_add(word_at(blob, field)? as usize);
            let start = start.ok_or_else(outside)?;
            let end = start.checked_add(word_at(blob, field + 4)? as usize).ok_or_else(outside)?;
            (end <= blob.len()).then_some((start, end)).ok_or_else(outside)
        };
        let (types_start, types_end) = section(8)?;
        let (strings_start, strings_end) = section(16)?;
        let strings = &blob[strings_start..strings_end];
        let mut parsed =
            Self { blob: &blob[..types_end], types: vec![0], strings, structures: HashMap::new() };
        let mut position = types_start;
        while position < types_end {
            let id = parsed.types.len();
            parsed.types.push(position);
            let found = parsed.type_at(position)?;
            position = position + 12 + trailing_bytes(id, &found)?;
            if position > types_end {
                return Err(BtfError::OutOfBounds { offset: position });
            }
            let is_structure = matches!(found.kind, kind::STRUCT | kind::UNION);
            if let (true, Ok(id)) = (is_structure && found.n_items > 0, u32::try_from(id)) {
                let name = parsed.string(found.name)?;
                if !name.is_empty() {
                    parsed.structures.entry(name).or_insert(id);
                }
            }
        }
        Ok(parsed)
    }

    /// Byte offsets along a path such as `task_struct.cgroups->subsys[cpu_cgrp_id]->id`: one offset
    /// per structure, the last being that of a field of `width` bytes.
    ///
    /// `.` steps into an embedded structure, `->` follows a pointer, `[name]` takes the array
    /// element numbered by an enumerator.
    ///
    /// # Errors
    /// Names the structure and member that this kernel lacks or has with another type.
    pub(super) fn offsets(&self, path: &str, width: u64) -> Result<Vec<u64>, BtfError> {
        let (root, rest) = path.split_once('.').unwrap_or((path, ""));
        let found = self.structures.get(root.as_bytes());
        let mut structure = *found.ok_or_else(|| BtfError::NoStruct { name: root.to_owned() })?;
        let mut name = root.to_owned();
        let mut offsets = Vec::new();
        let mut hops = rest.split("->").peekable();
        while let Some(hop) = hops.next() {
            let (offset, type_id) = self.hop(structure, &mut name, hop)?;
            offsets.push(offset);
            let last = hop.rsplit('.').next().unwrap_or(hop);
            let wrong =
                |expected: String| BtfError::WrongType { path: format!("{name}.{last}"), expected };
            let target = self.resolve(type_id)?;
            if hops.peek().is_none() {
                let size = self.size_of(type_id)?;
                if size != width {
                    return Err(wrong(format!("{width} bytes but {size}")));
                }
                break;
            }
            if target.kind != kind::PTR {
                return Err(wrong("a pointer".to_owned()));
            }
            structure = self.resolve_id(target.size_or_type)?;
            let pointed = self.type_of(structure)?;
            if !matches!(pointed.kind, kind::STRUCT | kind::UNION) {
                return Err(wrong("a pointer to a structure".to_owned()));
            }
            name = String::from_utf8_lossy(self.string(pointed.name)?).into_owned();
        }
        Ok(offsets)
    }

    /// The value of an enumerator of any enumeration.
    ///
    /// # Errors
    /// When no enumeration has it.
    pub(super) fn enumerator(&self, name: &str) -> Result<u64, BtfError> {
        for &position in self.types.iter().skip(1) {
            let found = self.type_at(position)?;
            let item_bytes = match found.kind {
                kind::ENUM => 8,
                kind::ENUM64 => 12,
                _ => continue,
            };
            for item in 0..found.n_items {
                let at = position + 12 + item * item_bytes;
                if self.string(word_at(self.blob, at)?)? == name.as_bytes() {
                    return Ok(u64::from(word_at(self.blob, at + 4)?));
                }
            }
        }
        Err(BtfError::NoEnumerator { name: name.to_owned() })
    }

    /// What each of the tracepoints `names` that this kernel has hands to programs, in order.
    ///
    /// # Errors
    /// When the types that say so lie outside the blob.
    pub(super) fn tracepoints(
        &self,
        names: &[&'static str],
    ) -> Result<BTreeMap<&'static str, Vec<Argument>>, BtfError> {
        let mut tracepoints = BTreeMap::new();
        for &position in self.types.iter().skip(1) {
            let found = self.type_at(position)?;
            if found.kind != kind::TYPEDEF {
                continue;
            }
            let Some(name) = self.string(found.name)?.strip_prefix(b"btf_trace_") else { continue };
            let Some(name) = names.iter().find(|wanted| wanted.as_bytes() == name) else {
                continue;
            };
            let pointer = self.resolve(found.size_or_type)?;
            let function = self.resolve(pointer.size_or_type)?;
            if pointer.kind != kind::PTR || function.kind != kind::FUNC_PROTO {
                continue;
            }
            // The first is the tracepoint's own.
            let arguments = (1..function.n_items).map(|item| {
                let at = function.position + 12 + 8 * item;
                self.argument(word_at(self.blob, at + 4)?)
            });
            tracepoints.insert(*name, arguments.collect::<Result<_, _>>()?);
        }
        Ok(tracepoints)
    }

    fn argument(&self, type_id: u32) -> Result<Argument, BtfError> {
        let found = self.resolve(type_id)?;
        if found.kind != kind::PTR {
            return Ok(Argument::Value { bytes: self.size_of(type_id)? });
        }
        let target = self.resolve(found.size_or_type)?;
        // A structure that is only declared has a name all the same.
        let is_named = matches!(target.kind, kind::STRUCT | kind::UNION | kind::FWD);
        let name = if is_named { self.string(target.name)? } else { b"" };
        Ok(Argument::Pointer(String::from_utf8_lossy(name).into_owned()))
    }

    /// Offset and type of `a.b[c]` within a structure.
    fn hop(&self, structure: u32, name: &mut String, hop: &str) -> Result<(u64, u32), BtfError> {
        let mut holder = structure;
        let mut offset = 0;
        let mut steps = hop.split('.').peekable();
        loop {
            let step = steps.next().unwrap_or_default();
            let (member_name, index) = match step.split_once('[') {
                Some((member, index)) => (member, Some(index.trim_end_matches(']'))),
                None => (step, None),
            };
            let member = self.member(holder, member_name, 0)?.ok_or_else(|| {
                BtfError::NoMember { structure: name.clone(), member: member_name.to_owned() }
            })?;
            self.check_place(holder, name, member_name, member)?;
            offset += member.offset_bits / 8;
            let mut type_id = member.type_id;
            if let Some(index) = index {
                let (element, inside) = self.element(type_id, index, name, member_name)?;
                offset += inside;
                type_id = element;
            }
            if steps.peek().is_none() {
                return Ok((offset, type_id));
            }
            holder = self.resolve_id(type_id)?;
            name.push('.');
            name.push_str(member_name);
        }
    }

    /// A field that can be read: whole bytes, all of them within the structure.
    fn check_place(
        &self,
        holder: u32,
        structure: &str,
        member_name: &str,
        member: Member,
    ) -> Result<(), BtfError> {
        if !member.offset_bits.is_multiple_of(8) || member.bits != 0 {
            let path = format!("{structure}.{member_name}");
            return Err(BtfError::WrongType { path, expected: "whole bytes".to_owned() });
        }
        let end = (member.offset_bits / 8).saturating_add(self.size_of(member.type_id)?);
        let size = u64::from(self.type_of(holder)?.size_or_type);
        if end > size {
            let (structure, member) = (structure.to_owned(), member_name.to_owned());
            return Err(BtfError::OutsideStructure { structure, member, end, size });
        }
        Ok(())
    }

    /// Type of an array's elements, and the offset of the one numbered by enumerator `index`.
    fn element(
        &self,
        array_id: u32,
        index: &str,
        structure: &str,
        member: &str,
    ) -> Result<(u32, u64), BtfError> {
        let array = self.resolve(array_id)?;
        let index_value = self.enumerator(index)?;
        let wrong = |expected: &str| BtfError::WrongType {
            path: format!("{structure}.{member}"),
            expected: expected.to_owned(),
        };
        if array.kind != kind::ARRAY {
            return Err(wrong("an array"));
        }
        let element_id = word_at(self.blob, array.position + 12)?;
        let n_elements = u64::from(word_at(self.blob, array.position + 20)?);
        if index_value >= n_elements {
            return Err(wrong("long enough"));
        }
        Ok((element_id, index_value * self.size_of(element_id)?))
    }

    /// A member by name, also within anonymous structures and unions.
    fn member(&self, structure: u32, name: &str, depth: usize) -> Result<Option<Member>, BtfError> {
        let holder = self.type_of(structure)?;
        if !matches!(holder.kind, kind::STRUCT | kind::UNION) || depth > DEPTH_MAX {
            return Ok(None);
        }
        for item in 0..holder.n_items {
            let at = holder.position + 12 + item * 12;
            let member_name = self.string(word_at(self.blob, at)?)?;
            let type_id = word_at(self.blob, at + 4)?;
            let placement = word_at(self.blob, at + 8)?;
            let (bits, offset_bits) = if holder.has_bitfields {
                (u64::from(placement >> 24), u64::from(placement & 0xff_ffff))
            } else {
                (0, u64::from(placement))
            };
            if member_name == name.as_bytes() {
                return Ok(Some(Member { offset_bits, type_id, bits }));
            }
            if member_name.is_empty()
                && let Some(inner) = self.member(self.resolve_id(type_id)?, name, depth + 1)?
            {
                let offset_bits = offset_bits + inner.offset_bits;
                return Ok(Some(Member { offset_bits, ..inner }));
            }
        }
        Ok(None)
    }

    /// Size of a type in bytes.
    fn size_of(&self, id: u32) -> Result<u64, BtfError> {
        let mut id = id;
        let mut n_elements = 1_u64;
        for _ in 0..DEPTH_MAX {
            let found = self.resolve(id)?;
            match found.kind {
                kind::PTR => return Ok(n_elements.saturating_mul(POINTER_BYTES)),
                kind::ARRAY => {
                    id = word_at(self.blob, found.position + 12)?;
                    let length = word_at(self.blob, found.position + 20)?;
                    n_elements = n_elements.saturating_mul(u64::from(length));
                }
                kind::INT | kind::STRUCT | kind::UNION | kind::ENUM | kind::ENUM64 => {
                    return Ok(n_elements.saturating_mul(u64::from(found.size_or_type)));
                }
                _ => return Ok(0),
            }
        }
        Ok(0)
    }

    /// The type behind typedefs and qualifiers.
    fn resolve(&self, id: u32) -> Result<Type, BtfError> {
        self.type_of(self.resolve_id(id)?)
    }

    fn resolve_id(&self, id: u32) -> Result<u32, BtfError> {
        let mut id = id;
        for _ in 0..DEPTH_MAX {
            let found = self.type_of(id)?;
            let is_alias = matches!(
                found.kind,
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG
            );
            if !is_alias {
                return Ok(id);
            }
            id = found.size_or_type;
        }
        Err(BtfError::OutOfBounds { offset: id as usize })
    }

    fn type_of(&self, id: u32) -> Result<Type, BtfError> {
        match self.types.get(id as usize) {
            // `void`.
            Some(0) => Ok(Type {
                position: 0,
                name: 0,
                kind: 0,
                has_bitfields: false,
                n_items: 0,
                size_or_type: 0,
            }),
            Some(&position) => self.type_at(position),
            None => Err(BtfError::OutOfBounds { offset: id as usize }),
        }
    }

    fn type_at(&self, position: usize) -> Result<Type, BtfError> {
        let info = word_at(self.blob, position + 4)?;
        Ok(Type {
            position,
            name: word_at(self.blob, position)?,
            kind: (info >> 24) & 0x1f,
            has_bitfields: info >> 31 != 0,
            n_items: (info & 0xffff) as usize,
            size_or_type: word_at(self.blob, position + 8)?,
        })
    }

    fn string(&self, offset: u32) -> Result<&'a [u8], BtfError> {
        let outside = BtfError::OutOfBounds { offset: offset as usize };
        let rest = self.strings.get(offset as usize..).ok_or(outside)?;
        let end = rest.iter().position(|&byte| byte == 0).unwrap_or(rest.len());
        Ok(&rest[..end])
    }
}

/// Bytes that follow the fixed part of a type.
fn trailing_bytes(id: usize, found: &Type) -> Result<usize, BtfError> {
    Ok(match found.kind {
        kind::INT | kind::VAR | kind::DECL_TAG => 4,
        kind::ARRAY => 12,
        kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => 12 * found.n_items,
        kind::ENUM | kind::FUNC_PROTO => 8 * found.n_items,
        1..=kind::LAST => 0,
        kind => return Err(BtfError::UnknownKind { id, kind }),
    })
}

fn array_at<const N: usize>(blob: &[u8], offset: usize) -> Result<[u8; N], BtfError> {
    let bytes = blob.get(offset..).and_then(|rest| rest.first_chunk());
    bytes.copied().ok_or(BtfError::OutOfBounds { offset })
}

fn word_at(blob: &[u8], offset: usize) -> Result<u32, BtfError> {
    Ok(u32::from_ne_bytes(array_at(blob, offset)?))
}
