//! A materialized result set: rows that go into a tuplestore.
//!
//! One row is filled from left to right, over and over ([`Tuple`]), and the tuplestore copies it; nothing here is allocated for
//! a row.
//!
//! Every value is checked against the type of its column, and the columns against what CREATE FUNCTION declared. That is
//! what makes these functions safe: a number stored where SQL expects text would be a wild pointer.

use std::ffi::CStr;

use pg_sys::errcodes::PgSqlErrorCode;
use pgrx_pg_sys as pg_sys;

use super::encoding;
use super::error;
use super::fmgr::Call;
use super::tuple::Tuple;

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
    Timestamptz,
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

    /// A `timestamptz` column.
    pub const fn timestamptz(name: &'static str) -> Self {
        Column { name, kind: Kind::Timestamptz }
    }

    fn type_oid(self) -> pg_sys::Oid {
        match self.kind {
            Kind::Bool => pg_sys::BOOLOID,
            Kind::Int4 => pg_sys::INT4OID,
            Kind::Int8 => pg_sys::INT8OID,
            Kind::Text => pg_sys::TEXTOID,
            Kind::Char => pg_sys::BPCHAROID,
            Kind::Timestamptz => pg_sys::TIMESTAMPTZOID,
        }
    }
}

/// The result set of a call, and the row that is being filled.
pub struct ResultSet {
    store: *mut pg_sys::Tuplestorestate,
    columns: &'static [Column],
    row: Tuple,
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
        let row = Tuple::new(columns.len());
        ResultSet { store: result.setResult, columns, row, scratch: Vec::new() }
    }

    /// The row's next value, a boolean.
    pub fn bool(&mut self, value: Option<bool>) {
        self.next(Kind::Bool);
        match value {
            Some(value) => self.row.bool(value),
            None => self.row.null(),
        }
    }

    /// The row's next value, an integer.
    pub fn int4(&mut self, value: Option<i32>) {
        self.next(Kind::Int4);
        match value {
            Some(value) => self.row.int4(value),
            None => self.row.null(),
        }
    }

    /// The row's next values, integers.
    pub fn int4s<const N: usize>(&mut self, values: [Option<i32>; N]) {
        if values.contains(&None) {
            values.into_iter().for_each(|value| self.int4(value));
        } else {
            (0..N).for_each(|nth| self.require(self.row.filled() + nth, Kind::Int4));
            self.row.int4s(&values.map(Option::unwrap_or_default));
        }
    }

    /// The row's next value, a bigint. NULL too if it cannot hold that.
    pub fn int8(&mut self, value: Option<u64>) {
        self.next(Kind::Int8);
        match value.and_then(|value| i64::try_from(value).ok()) {
            Some(value) => self.row.int8(value),
            None => self.row.null(),
        }
    }

    /// The row's next value, a point in time in microseconds since the Unix epoch.
    pub fn timestamptz(&mut self, value: Option<i64>) {
        self.next(Kind::Timestamptz);
        let days = i64::from(pg_sys::POSTGRES_EPOCH_JDATE - pg_sys::UNIX_EPOCH_JDATE);
        match value {
            Some(value) => self.row.int8(value - days * 86_400_000_000),
            None => self.row.null(),
        }
    }

    /// The row's next value, a text. Bytes that are not valid in the database's encoding are escaped.
    pub fn text(&mut self, value: Option<&[u8]>) {
        self.varlena(Kind::Text, value);
    }

    /// The row's next value, a char(n). As with [`ResultSet::text`], and never padded.
    pub fn char(&mut self, value: Option<&[u8]>) {
        self.varlena(Kind::Char, value);
    }

    fn varlena(&mut self, kind: Kind, value: Option<&[u8]>) {
        self.next(kind);
        match value {
            Some(bytes) => self.row.text(encoding::storable(bytes, &mut self.scratch)),
            None => self.row.null(),
        }
    }

    /// Ends the row.
    pub fn end_row(&mut self) {
        let store = self.store;
        // SAFETY: the store is this call's. The row has a value of the right type for each column, as Tuple::finish() and
        // ResultSet::require() see to, and stays where it is until after the call, which copies it.
        self.row.finish(|tuple| unsafe { pg_sys::tuplestore_puttuple(store, tuple) });
    }

    /// Checks the type of the row's next value.
    fn next(&self, kind: Kind) {
        self.require(self.row.filled(), kind);
    }

    /// Checks the type of the row's value at a position.
    fn require(&self, at: usize, kind: Kind) {
        let column = &self.columns[at];
        assert_eq!(column.kind, kind, "column {}", column.name);
    }
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
