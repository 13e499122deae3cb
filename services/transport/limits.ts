import assert from 'node:assert/strict';
import type { GroupLimits } from '../../native/index.js';
import { overLimit, type SwitchyardError } from '../common/errors.js';
import { metadataBytesMax } from '../common/grpc-channel.js';
import { modelLimits } from '../model/limits.js';
import type { Link, LinkLimits, TokenBatchMeta } from './link.js';

/** What the size of a token batch depends on, beside its rows and row indices. */
type Form = Pick<TokenBatchMeta, 'hidden' | 'combine'>;

const bytesPerElement = 2;
/** Names and numbers of a token batch's metadata. */
const metadataBytesBase = 1024;
/** A row index and its weight, 4 bytes each, and a segment, which has at least one of them: 8 bytes. */
const metadataBytesPerEntry = 16;
const entriesMax = Math.floor((metadataBytesMax - metadataBytesBase) / metadataBytesPerEntry);
/** Room behind the rows of an answer for its metadata, which a transport may send from there. */
export const resultMetadataBytes = 256;
/** What a router takes in one answer: results of all experts of most chunks. */
export const resultBytesMax = 128 * 1024 * 1024;
/** The least credit that a link is worth. */
export const creditBytesMin = 64 * 1024;
/** Slabs have whole pages, and above 64 KiB size classes that waste up to an eighth. */
const slabWaste = 9 / 8;
const slabPageBytes = 4096;

assert(modelLimits.topK <= entriesMax, 'the metadata of a token fits in a message');
assert(
  rowsBytes(modelLimits.topK, modelLimits.hidden) <= resultBytesMax,
  'the results of a token fit in an answer',
);

export function rowsBytes(rowCount: number, hidden: number): number {
  return rowCount * hidden * bytesPerElement;
}

/** Rows that answer a token batch. */
export function resultRowCount({ combine, rowIndices, rowCount }: TokenBatchMeta): number {
  return combine === 'exact' ? rowIndices.length : rowCount;
}

/** The most bytes that the metadata of a token batch has in its wire form; a transport sends it from behind the rows. */
export function metadataRoom({ rowIndices }: TokenBatchMeta): number {
  return metadataBytesBase + rowIndices.length * metadataBytesPerEntry;
}

/**
 * Bytes of credit that a token batch takes, the same at both ends: the most memory of slabs that the worker holds for it. Those
 * are its rows with its metadata, one result for each row index, and for `partial` one sum for each row.
 */
export function creditCost(meta: TokenBatchMeta): number {
  const { base, row, entry } = costs(meta);
  return Math.ceil(base + meta.rowCount * row + meta.rowIndices.length * entry);
}

function costs({ hidden, combine }: Form): { base: number; row: number; entry: number } {
  const rowBytes = rowsBytes(1, hidden);
  const answers = combine === 'partial' ? 2 : 1;
  return {
    base: slabWaste * (metadataBytesBase + answers * resultMetadataBytes) + (1 + answers) * slabPageBytes,
    row: slabWaste * answers * rowBytes,
    entry: slabWaste * (rowBytes + metadataBytesPerEntry),
  };
}

/**
 * What token batches may have so that they and their answers fit on the links, for each worker; null: no limit.
 * `choices`: experts of one token at each worker, at most. Half of a link's credit is the most of one, so that another travels
 * meanwhile. Throws as `checkToken`.
 */
export function groupLimits(
  links: readonly (Link | null)[],
  choices: readonly number[],
  form: Form,
): GroupLimits {
  const { base, row, entry } = costs(form);
  const all: GroupLimits = {
    rowsMax: new Float64Array(links.length).fill(Infinity),
    entriesMax: new Float64Array(links.length).fill(Infinity),
    costMax: new Float64Array(links.length).fill(Infinity),
    rowCost: row,
    entryCost: entry,
  };
  for (const [worker, link] of links.entries()) {
    if (link === null) continue;
    checkToken(link, choices[worker]!, form);
    const { rowBytesMax, resultBytesMax, creditBytes } = link.limits;
    const rowBytes = rowsBytes(1, form.hidden);
    const resultsMax = Math.floor(resultBytesMax / rowBytes);
    const [rowsMax, indicesMax] = form.combine === 'exact' ? [Infinity, resultsMax] : [resultsMax, Infinity];
    all.rowsMax[worker] = Math.min(rowsMax, Math.floor(rowBytesMax / rowBytes));
    all.entriesMax[worker] = Math.min(indicesMax, entriesMax);
    all.costMax[worker] = Math.max(creditBytes / 2 - base, row + choices[worker]! * entry);
  }
  return all;
}

/** Throws TOO_LARGE, naming the setting, if a token with so many of its experts at the link's worker is more than the link allows. */
export function checkToken(link: Link, choices: number, form: Form): void {
  const { base, row, entry } = costs(form);
  const results = form.combine === 'exact' ? choices : 1;
  checkSizes(link.worker, link.limits, {
    rowBytes: rowsBytes(1, form.hidden),
    resultBytes: rowsBytes(results, form.hidden),
    cost: Math.ceil(base + row + choices * entry),
    of: 'one token',
  });
}

/** Throws TOO_LARGE, naming the setting, if a token batch or its answer is more than a link allows. */
export function checkBatch(worker: string, limits: LinkLimits, meta: TokenBatchMeta): void {
  checkSizes(worker, limits, {
    rowBytes: rowsBytes(meta.rowCount, meta.hidden),
    resultBytes: rowsBytes(resultRowCount(meta), meta.hidden),
    cost: creditCost(meta),
    of: 'a token batch',
  });
}

function checkSizes(
  worker: string,
  limits: LinkLimits,
  { rowBytes, resultBytes, cost, of }: { rowBytes: number; resultBytes: number; cost: number; of: string },
): void {
  if (rowBytes > limits.rowBytesMax) throw tooManyRows(rowBytes, limits.rowBytesMax, worker, of);
  if (resultBytes > limits.resultBytesMax)
    throw tooManyResults(resultBytes, limits.resultBytesMax, 'this router', of);
  if (cost > limits.creditBytes) {
    const by = { setting: 'linkWindowBytes (or slabBytes, where that gives less)', node: `worker ${worker}` };
    throw overLimit('TOO_LARGE', `bytes of credit for ${of}`, cost, limits.creditBytes, by);
  }
}

export function tooManyRows(
  bytes: number,
  allowed: number,
  worker: string,
  of = 'a token batch',
): SwitchyardError {
  const by = { setting: 'messageBytesMax', node: `worker ${worker}` };
  return overLimit('TOO_LARGE', `row bytes of ${of}`, bytes, allowed, by);
}

export function tooManyResults(
  bytes: number,
  allowed: number,
  node: string,
  of = 'a token batch',
): SwitchyardError {
  return overLimit('TOO_LARGE', `result bytes of ${of}`, bytes, allowed, {
    setting: 'result_bytes_max',
    node,
  });
}
