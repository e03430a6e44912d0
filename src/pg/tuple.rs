//! A row in the form in which Postgres keeps rows, written from left to right into one reused buffer.
//!
//! `tuplestore_putvalues` makes that form out of a row of Datums: it walks over all columns twice, follows a pointer for each
//! text, and allocates. Beside the kernel's 3 us for a mapping that is 0.3 us, more than taking the mapping's text apart. Here
//! each value goes to its place at once, and `tuplestore_puttuple` merely copies the whole.
//!
//! # The form
//!
//! It is that of every table on disk, and the same in all majors we support: a header with the number of columns and two
//! flags; a bitmap, a bit for each column that is not NULL, looked at only if the flag for NULLs is set; then, from `t_hoff`
//! on, the values. An integer is aligned to its size. A text of up to 126 bytes follows a single byte with its length and
//! is not aligned; a longer one follows a word with its length, and is. NULL takes no room. What aligning skips is zero.

use core::mem::{offset_of, size_of};

use pg_sys::HeapTupleHeaderData as Header;
use pgrx_pg_sys as pg_sys;

use super::error;

/// A row that is being written. Values must come in the order of the columns, and be of their types.
pub struct Tuple {
    bytes: Vec<u8>,
    columns: usize,
    has_null: bool,
    next: usize,
    values_start: usize,
}

/// Where the header's bitmap starts.
const BITS: usize = offset_of!(Header, t_bits);

/// What a row and its values are aligned to.
const ALIGNMENT: usize = pg_sys::MAXIMUM_ALIGNOF as usize;

/// The most bytes of a text, its length included, whose length is in a single byte.
const SHORT: usize = 127;

impl Tuple {
    /// An empty row of so many columns.
    pub fn new(columns: usize) -> Self {
        // There is always room for the bitmap, so that the values need not move when a NULL comes.
        let values_start = (BITS + columns.div_ceil(8)).next_multiple_of(ALIGNMENT);
        let mut tuple = Tuple { bytes: Vec::with_capacity(4096), columns, has_null: false, next: 0, values_start };
        tuple.clear();
        tuple
    }

    /// Makes the row empty again.
    fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.resize(self.values_start, 0);
        self.bytes[BITS..self.values_start].fill(0xff);
        self.has_null = false;
        self.next = 0;
    }

    /// How many values the row has.
    pub fn filled(&self) -> usize {
        self.next
    }

    /// The next value, NULL.
    pub fn null(&mut self) {
        self.bytes[BITS + self.next / 8] &= !(1 << (self.next % 8));
        self.has_null = true;
        self.next += 1;
    }

    /// The next value, a boolean.
    pub fn bool(&mut self, value: bool) {
        self.put(1, &[value.into()]);
    }

    /// The next value, an integer.
    pub fn int4(&mut self, value: i32) {
        self.put(4, &value.to_ne_bytes());
    }

    /// The next values, integers, at one go.
    pub fn int4s<const N: usize>(&mut self, values: &[i32; N]) {
        self.align(4);
        self.bytes.extend(values.iter().flat_map(|value| value.to_ne_bytes()));
        self.next += N;
    }

    /// The next value, a bigint.
    pub fn int8(&mut self, value: i64) {
        self.put(8, &value.to_ne_bytes());
    }

    /// The next value, a text in the database's encoding.
    #[inline]
    pub fn text(&mut self, value: &[u8]) {
        error::reserve(&mut self.bytes, value.len() + 8);
        if value.len() < SHORT {
            self.bytes.push(((value.len() as u8 + 1) << 1) | 1);
        } else {
            let length = value.len() + size_of::<u32>();
            assert!(length < 1 << 30, "a text is shorter than 1 GiB");
            self.align(4);
            self.bytes.extend_from_slice(&((length as u32) << 2).to_ne_bytes());
        }
        self.bytes.extend_from_slice(value);
        self.next += 1;
    }

    /// Hands the whole row to a function, in the form of a Postgres tuple, and starts the next.
    pub fn finish(&mut self, take: impl FnOnce(&mut pg_sys::HeapTupleData)) {
        assert_eq!(self.next, self.columns, "a value for each column");
        // Without a NULL there is no bitmap: the header moves up to the values, over the room that was kept for one.
        let start = if self.has_null { 0 } else { self.values_start - BITS.next_multiple_of(ALIGNMENT) };
        let flags = pg_sys::HEAP_HASVARWIDTH | if self.has_null { pg_sys::HEAP_HASNULL } else { 0 };
        self.bytes[start..start + offset_of!(Header, t_infomask2)].fill(0);
        self.put_header(start + offset_of!(Header, t_infomask), flags as u16);
        self.put_header(start + offset_of!(Header, t_infomask2), self.columns as u16);
        self.bytes[start + offset_of!(Header, t_hoff)] =
            u8::try_from(self.values_start - start).expect("there are few columns");
        if !self.has_null {
            self.bytes[start + BITS..self.values_start].fill(0);
        }
        let row = &mut self.bytes[start..];
        let header = row.as_mut_ptr().cast::<Header>();
        // As the allocator aligns everything of this size.
        assert!(header.addr().is_multiple_of(ALIGNMENT));
        let mut tuple = pg_sys::HeapTupleData {
            t_len: u32::try_from(row.len()).expect("a row is shorter than 4 GiB"),
            t_data: header,
            ..pg_sys::HeapTupleData::default()
        };
        take(&mut tuple);
        self.clear();
    }

    fn put_header(&mut self, at: usize, value: u16) {
        self.bytes[at..at + 2].copy_from_slice(&value.to_ne_bytes());
    }

    fn put(&mut self, alignment: usize, value: &[u8]) {
        self.align(alignment);
        self.bytes.extend_from_slice(value);
        self.next += 1;
    }

    /// Skips to an alignment. The values start at the largest one.
    #[inline]
    fn align(&mut self, alignment: usize) {
        while !self.bytes.len().is_multiple_of(alignment) {
            self.bytes.push(0);
        }
    }
}
