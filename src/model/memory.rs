//! Memory that can be read in pieces, of which some may not exist: that of another process, or one that a test makes
//! up.

use std::collections::TryReserveError;

/// Some bytes of a memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The address of the first byte.
    pub address: u64,
    /// The number of bytes.
    pub length: usize,
}

/// A memory, which may change at any time.
pub trait Memory {
    /// Why nothing can be read at all.
    type Error;

    /// Reads at most [`MAX_PIECES`] pieces in their order into `buffer`, one behind the other. Returns how many could
    /// be read before the first that could not.
    fn read(&mut self, pieces: &[Piece], buffer: &mut [u8]) -> Result<usize, Self::Error>;
}

/// The maximum number of pieces of one read: UIO_MAXIOV of Linux.
pub const MAX_PIECES: usize = 1024;

/// Why a result could not be computed.
#[derive(Debug, PartialEq, Eq)]
pub enum Failure<E> {
    /// Nothing can be read from the memory.
    Memory(E),
    /// There is not enough memory for the result.
    OutOfMemory,
}

impl<E> From<TryReserveError> for Failure<E> {
    fn from(_: TryReserveError) -> Self {
        Failure::OutOfMemory
    }
}

/// Reads any number of pieces and passes each to `take`, in their order, with the number of its read, or
/// `None` if it cannot be read. `reads` is the number of pieces read so far. Calls `pause` before each read; it may
/// unwind.
pub(super) fn read_pieces<M: Memory>(
    memory: &mut M,
    pieces: &[Piece],
    buffer: &mut Vec<u8>,
    reads: &mut u64,
    mut pause: impl FnMut(),
    mut take: impl FnMut(usize, u64, Option<&[u8]>) -> Result<(), TryReserveError>,
) -> Result<(), Failure<M::Error>> {
    let mut done = 0;
    while done < pieces.len() {
        pause();
        let batch = &pieces[done..pieces.len().min(done + MAX_PIECES)];
        let length = batch.iter().map(|piece| piece.length).sum();
        if buffer.len() < length {
            buffer.try_reserve(length - buffer.len())?;
            buffer.resize(length, 0);
        }
        let readable = memory.read(batch, &mut buffer[..length]).map_err(Failure::Memory)?;
        let mut rest = &buffer[..length];
        for piece in &batch[..readable] {
            *reads += 1;
            let (bytes, after) = rest.split_at(piece.length);
            take(done, *reads, Some(bytes))?;
            done += 1;
            rest = after;
        }
        if readable < batch.len() {
            *reads += 1;
            take(done, *reads, None)?;
            done += 1;
        }
    }
    Ok(())
}
