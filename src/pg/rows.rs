//! The rows of a set-returning function, materialized in a tuplestore.
//!
//! [`rows!`] declares what a function returns: the name, type and value of each column in one place. Every row uses the
//! same array of Datums and the same buffer for texts, and `tuplestore_putvalues` copies them, so that nothing here is
//! allocated per row.
//!
//! Before the first row, the columns are compared with those that CREATE FUNCTION declared. Without that check, a
//! number stored where SQL expects text would be used as a pointer.

use std::ffi::CStr;

use pg_sys::errcodes::PgSqlErrorCode;
use pgrx_pg_sys as pg_sys;

use super::encoding;
use super::error;
use super::fmgr::Call;
use super::this_process;

/// A column of a result.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// Its name.
    pub name: &'static str,
    /// Its type.
    pub kind: Kind,
}

/// The type of a column. For each type, [`Rows`] has a method of the same name that makes a value of it.
#[allow(non_camel_case_types)] // the names are SQL's
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `boolean`
    bool,
    /// `integer`
    int4,
    /// `bigint`
    int8,
    /// `text`
    text,
    /// `char(n)`. The declared type of a function's column has no length, so any length is accepted.
    bpchar,
    /// `oid`
    oid,
    /// `timestamptz`
    timestamptz,
    /// `integer[]`
    int4_array,
}

impl Kind {
    fn oid(self) -> pg_sys::Oid {
        match self {
            Kind::bool => pg_sys::BOOLOID,
            Kind::int4 => pg_sys::INT4OID,
            Kind::int8 => pg_sys::INT8OID,
            Kind::text => pg_sys::TEXTOID,
            Kind::bpchar => pg_sys::BPCHAROID,
            Kind::oid => pg_sys::OIDOID,
            Kind::timestamptz => pg_sys::TIMESTAMPTZOID,
            Kind::int4_array => pg_sys::INT4ARRAYOID,
        }
    }
}

/// Declares what a function returns. Defines a type with two functions: `start`, called once per call, and `put`,
/// called once per row. The values are expressions of the arguments of `put`.
///
/// ```ignore
/// rows! {
///     /// The rows of `pg_meminfo_example()`.
///     Example(process: &Process) {
///         pid: int4 = Some(process.pid),
///         name: text = process.name(),
///     }
/// }
/// ```
macro_rules! rows {
    ($(#[$doc:meta])* $rows:ident($($argument:ident: $type:ty),*) {
        $($column:ident: $kind:ident = $value:expr,)*
    }) => {
        $(#[$doc])*
        struct $rows($crate::pg::rows::Rows);

        impl $rows {
            /// Starts the result of a call.
            fn start(call: &$crate::pg::fmgr::Call) -> Self {
                const COLUMNS: &[$crate::pg::rows::Column] = &[
                    $($crate::pg::rows::Column { name: stringify!($column), kind: $crate::pg::rows::Kind::$kind },)*
                ];
                Self($crate::pg::rows::Rows::start(call, COLUMNS))
            }

            /// Adds a row.
            fn put(&mut self, $($argument: $type),*) {
                let row = [$(self.0.$kind($value)),*];
                self.0.put(row);
            }
        }
    };
}
pub(crate) use rows;

/// NULL for 0.
pub fn number(number: i64) -> Option<i64> {
    (number != 0).then_some(number)
}

/// The result of a call. Only for [`rows!`], which makes one value of the right type for each column.
pub struct Rows {
    store: *mut pg_sys::Tuplestorestate,
    descriptor: pg_sys::TupleDesc,
    text_columns: Vec<usize>,
    /// The row that is being filled.
    values: Vec<pg_sys::Datum>,
    nulls: Vec<bool>,
    /// The row's texts as Postgres stores them, each with its length first.
    texts: Vec<u8>,
    scratch: Vec<u8>,
    /// The row's arrays, to be freed.
    arrays: Vec<*mut pg_sys::ArrayType>,
}

/// The size of the longest text that has a one-byte header, including the header.
const MAX_SHORT_TEXT: usize = 127;

impl Rows {
    /// Starts the result of a call.
    pub fn start(call: &Call, columns: &[Column]) -> Self {
        // SAFETY: the record is that of the current call.
        unsafe { pg_sys::InitMaterializedSRF(call.fcinfo(), 0) };
        // SAFETY: InitMaterializedSRF has checked that this is a ReturnSetInfo, which outlives the call.
        let result = unsafe { &*call.result_info() };
        require_columns(result.setDesc, columns);
        let is_text = |&at: &usize| matches!(columns[at].kind, Kind::text | Kind::bpchar);
        Rows {
            store: result.setResult,
            descriptor: result.setDesc,
            text_columns: (0..columns.len()).filter(is_text).collect(),
            values: vec![pg_sys::Datum::null(); columns.len()],
            nulls: vec![true; columns.len()],
            texts: Vec::with_capacity(4096),
            scratch: Vec::new(),
            arrays: Vec::new(),
        }
    }

    /// The value of a boolean.
    #[inline]
    pub fn bool(&self, value: Option<bool>) -> Option<pg_sys::Datum> {
        value.map(pg_sys::Datum::from)
    }

    /// The value of an integer. NULL also if the number does not fit.
    #[inline]
    pub fn int4(&self, value: Option<impl TryInto<i32>>) -> Option<pg_sys::Datum> {
        value.and_then(|value| value.try_into().ok()).map(pg_sys::Datum::from)
    }

    /// The value of a bigint. NULL also if the number does not fit.
    #[inline]
    pub fn int8(&self, value: Option<impl TryInto<i64>>) -> Option<pg_sys::Datum> {
        value.and_then(|value| value.try_into().ok()).map(pg_sys::Datum::from)
    }

    /// The value of an OID.
    pub fn oid(&self, value: Option<u32>) -> Option<pg_sys::Datum> {
        value.map(pg_sys::Datum::from)
    }

    /// The value of a timestamp, from microseconds since the Unix epoch.
    pub fn timestamptz(&self, value: Option<i64>) -> Option<pg_sys::Datum> {
        self.int8(value.map(|value| value - this_process::EPOCH))
    }

    /// The value of a text. Until the row is complete, this is its offset in the buffer, because the buffer may move.
    /// Bytes that are not valid in the database's encoding are escaped.
    #[inline]
    pub fn text(&mut self, value: Option<&[u8]>) -> Option<pg_sys::Datum> {
        let bytes = encoding::storable(value?, &mut self.scratch);
        error::reserve(&mut self.texts, bytes.len() + 2 * size_of::<u32>());
        let start = if bytes.len() < MAX_SHORT_TEXT {
            self.texts.push(((bytes.len() as u8 + 1) << 1) | 1);
            self.texts.len() - 1
        } else {
            let length = bytes.len() + size_of::<u32>();
            assert!(length < 1 << 30, "a text is shorter than 1 GiB");
            self.texts.resize(self.texts.len().next_multiple_of(align_of::<u32>()), 0);
            self.texts.extend_from_slice(&((length as u32) << 2).to_ne_bytes());
            self.texts.len() - size_of::<u32>()
        };
        self.texts.extend_from_slice(bytes);
        Some(pg_sys::Datum::from(start))
    }

    /// The value of a char(n), escaped as by [`Rows::text`] and never padded.
    #[inline]
    pub fn bpchar(&mut self, value: Option<&[u8]>) -> Option<pg_sys::Datum> {
        self.text(value)
    }

    /// The value of an array of integers.
    pub fn int4_array(&mut self, value: Option<&[i32]>) -> Option<pg_sys::Datum> {
        let value = value?;
        let mut elements = Vec::new();
        error::reserve(&mut elements, value.len());
        elements.extend(value.iter().map(|&element| pg_sys::Datum::from(element)));
        let (count, by_value, alignment) = (value.len() as i32, true, pg_sys::TYPALIGN_INT as core::ffi::c_char);
        // SAFETY: the elements are that many integers, of which these are the type, length and alignment.
        let array =
            unsafe { pg_sys::construct_array(elements.as_mut_ptr(), count, pg_sys::INT4OID, 4, by_value, alignment) };
        self.arrays.push(array);
        Some(pg_sys::Datum::from(array))
    }

    /// Adds a row: a value for each column, or nothing for NULL.
    #[inline]
    pub fn put<const N: usize>(&mut self, row: [Option<pg_sys::Datum>; N]) {
        let (values, nulls) = (&mut self.values[..N], &mut self.nulls[..N]);
        for (at, value) in row.into_iter().enumerate() {
            values[at] = value.unwrap_or(pg_sys::Datum::null());
            nulls[at] = value.is_none();
        }
        let texts = self.texts.as_ptr();
        // The allocator aligns every buffer of this size.
        assert!(texts.addr().is_multiple_of(align_of::<u32>()));
        for &at in &self.text_columns {
            // A NULL also becomes a pointer to the buffer, but its value is never used.
            values[at] = pg_sys::Datum::from(texts.wrapping_add(values[at].value()));
        }
        self.store();
        self.texts.clear();
        for array in self.arrays.drain(..) {
            // SAFETY: it was allocated for this row, which has been copied.
            unsafe { pg_sys::pfree(array.cast()) };
        }
    }

    fn store(&mut self) {
        let (values, nulls) = (self.values.as_mut_ptr(), self.nulls.as_mut_ptr());
        // SAFETY: the store and the descriptor belong to this call. The arrays have an element for each of the
        // descriptor's columns, as start() has checked, and the values have the right types, as rows! ensures. The
        // texts do not move until after the call, which copies them.
        unsafe { pg_sys::tuplestore_putvalues(self.store, self.descriptor, values, nulls) };
    }
}

/// Raises an ERROR unless the function's declared columns are those that this library returns.
fn require_columns(descriptor: pg_sys::TupleDesc, columns: &[Column]) {
    // SAFETY: InitMaterializedSRF has made the descriptor.
    let count = unsafe { (*descriptor).natts } as usize;
    let matches = |(number, column): (i32, &Column)| {
        // SAFETY: the number is one of the descriptor's.
        let name = unsafe { pg_sys::SPI_fname(descriptor, number) };
        // SAFETY: the name ends with a NUL and was allocated for us.
        let same_name = unsafe { CStr::from_ptr(name) }.to_bytes() == column.name.as_bytes();
        // SAFETY: the number is one of the descriptor's.
        same_name && unsafe { pg_sys::SPI_gettypeid(descriptor, number) } == column.kind.oid()
    };
    if count != columns.len() || !(1..).zip(columns).all(matches) {
        error::raise(
            PgSqlErrorCode::ERRCODE_INVALID_FUNCTION_DEFINITION,
            "result of function does not match the pg_meminfo library",
            Some("The library may be of another version than the extension in this database.".to_string()),
        );
    }
}
