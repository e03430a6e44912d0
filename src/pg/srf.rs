//! A materialized result set: rows that go into a tuplestore.
//!
//! One row of Datums is filled from left to right, over and over. Its texts are varlenas in one reused block of memory, to
//! which the Datums point; `tuplestore_putvalues` copies all of it into a tuple of its own, so nothing here is allocated
//! for a row.
//!
//! Every value is checked against the type of its column, and the columns against what CREATE FUNCTION declared. That is
//! what makes these functions safe: a number stored where SQL expects text would be a wild pointer.

use std::ffi::CStr;

use pg_sys::errcodes::PgSqlErrorCode;
use pgrx_pg_sys as pg_sys;

use super::encoding;
use super::error;
use super::fmgr::Call;

/// A column of a result.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    name: &'static str,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Bool,
    Int4,
    Int8,
    Text,
    Char,
}

impl Column {
    /// A `boolean` column.
    pub const fn bool(name: &'static str) -> Self {
        Column { name, kind: Kind::Bool }
    }

    /// An `integer` column.
    pub const fn int4(name: &'static str) -> Self {
        Column { name, kind: Kind::Int4 }
    }

    /// A `bigint` column.
    pub const fn int8(name: &'static str) -> Self {
        Column { name, kind: Kind::Int8 }
    }

    /// A `text` column.
    pub const fn text(name: &'static str) -> Self {
        Column { name, kind: Kind::Text }
    }

    /// A `char(n)` column. A function's result has no n, so any length will do.
    pub const fn char(name: &'static str) -> Self {
        Column { name, kind: Kind::Char }
    }

    fn type_oid(self) -> pg_sys::Oid {
        match self.kind {
            Kind::Bool => pg_sys::BOOLOID,
            Kind::Int4 => pg_sys::INT4OID,
            Kind::Int8 => pg_sys::INT8OID,
            Kind::Text => pg_sys::TEXTOID,
            Kind::Char => pg_sys::BPCHAROID,
        }
    }
}

/// The result set of a call, and the row that is being filled.
pub struct ResultSet {
    store: *mut pg_sys::Tuplestorestate,
    descriptor: pg_sys::TupleDesc,
    columns: &'static [Column],
    values: Vec<pg_sys::Datum>,
    nulls: Vec<bool>,
    /// The row's texts, each with a four-byte header, from word boundaries on.
    texts: Vec<u32>,
    /// Which column's value is the text that starts at which word of `texts`.
    text_starts: Vec<(usize, usize)>,
    scratch: Vec<u8>,
}

impl ResultSet {
    /// Starts the result set of a call.
    pub fn start(call: &Call, columns: &'static [Column]) -> Self {
        // SAFETY: the record is that of the call we are in.
        unsafe { pg_sys::InitMaterializedSRF(call.fcinfo(), 0) };
        // SAFETY: InitMaterializedSRF has checked that this is a ReturnSetInfo, which outlives the call.
        let result = unsafe { &*call.result_info() };
        require_columns(result.setDesc, columns);
        ResultSet {
            store: result.setResult,
            descriptor: result.setDesc,
            columns,
            values: Vec::with_capacity(columns.len()),
            nulls: Vec::with_capacity(columns.len()),
            texts: Vec::new(),
            text_starts: Vec::with_capacity(columns.len()),
            scratch: Vec::new(),
        }
    }

    /// The row's next value, a boolean.
    pub fn bool(&mut self, value: Option<bool>) {
        self.push(Kind::Bool, value.map(|value| pg_sys::Datum::from(u8::from(value))));
    }

    /// The row's next value, an integer.
    pub fn int4(&mut self, value: Option<i32>) {
        self.push(Kind::Int4, value.map(pg_sys::Datum::from));
    }

    /// The row's next value, a bigint.
    pub fn int8(&mut self, value: Option<i64>) {
        self.push(Kind::Int8, value.map(pg_sys::Datum::from));
    }

    /// The row's next value, a text. Bytes that are not valid in the database's encoding are escaped.
    pub fn text(&mut self, value: Option<&[u8]>) {
        self.varlena(Kind::Text, value);
    }

    /// The row's next value, a char(n). As with [`ResultSet::text`], and never padded.
    pub fn char(&mut self, value: Option<&[u8]>) {
        self.varlena(Kind::Char, value);
    }

    /// Ends the row.
    pub fn end_row(&mut self) {
        assert_eq!(self.values.len(), self.columns.len(), "a value for each column");
        for &(column, word) in &self.text_starts {
            self.values[column] = pg_sys::Datum::from(self.texts[word..].as_ptr());
        }
        let (values, nulls) = (self.values.as_mut_ptr(), self.nulls.as_mut_ptr());
        // SAFETY: store and descriptor are this call's. There is a value for each column, of its type, and the texts that
        // the values point to stay where they are until after the call, which copies them.
        unsafe { pg_sys::tuplestore_putvalues(self.store, self.descriptor, values, nulls) };
        self.values.clear();
        self.nulls.clear();
        self.texts.clear();
        self.text_starts.clear();
    }

    fn varlena(&mut self, kind: Kind, value: Option<&[u8]>) {
        if let Some(bytes) = value {
            let bytes = encoding::storable(bytes, &mut self.scratch);
            self.text_starts.push((self.values.len(), self.texts.len()));
            append_varlena(&mut self.texts, bytes);
        }
        // The block may yet move as it grows: end_row() puts the addresses in.
        self.push(kind, value.map(|_| pg_sys::Datum::null()));
    }

    fn push(&mut self, kind: Kind, value: Option<pg_sys::Datum>) {
        let column = self.columns[self.values.len()];
        assert_eq!(column.kind, kind, "column {}", column.name);
        self.values.push(value.unwrap_or(pg_sys::Datum::null()));
        self.nulls.push(value.is_none());
    }
}

/// Appends a text in Postgres's form: the length, this word included, above two flag bits that are zero; then the bytes.
fn append_varlena(texts: &mut Vec<u32>, bytes: &[u8]) {
    let length = bytes.len() + 4;
    assert!(length < 1 << 30, "a text is shorter than 1 GiB");
    error::reserve(texts, length.div_ceil(4) + 1);
    let (words, rest) = bytes.as_chunks();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    texts.push((length as u32) << 2);
    texts.extend(words.iter().map(|&word| u32::from_ne_bytes(word)));
    texts.push(u32::from_ne_bytes(last));
}

/// Refuses a function whose declared result is not what this library returns.
fn require_columns(descriptor: pg_sys::TupleDesc, columns: &[Column]) {
    // SAFETY: InitMaterializedSRF has made the descriptor.
    let count = unsafe { (*descriptor).natts } as usize;
    let matches = |(number, column): (i32, &Column)| {
        // SAFETY: the number is one of the descriptor's.
        let name = unsafe { pg_sys::SPI_fname(descriptor, number) };
        // SAFETY: the name ends with a NUL, and nobody else has it.
        let same_name = unsafe { CStr::from_ptr(name) }.to_bytes() == column.name.as_bytes();
        // SAFETY: the number is one of the descriptor's.
        same_name && unsafe { pg_sys::SPI_gettypeid(descriptor, number) } == column.type_oid()
    };
    if count != columns.len() || !(1..).zip(columns).all(matches) {
        error::raise(
            PgSqlErrorCode::ERRCODE_INVALID_FUNCTION_DEFINITION,
            "result of function does not match the pg_meminfo library",
            Some("The library may be of another version than the extension in this database.".to_string()),
        );
    }
}
