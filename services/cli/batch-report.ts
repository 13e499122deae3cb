import { type BatchSummary, SwitchyardError } from '../client/index.js';
import { isStandardOutput } from '../common/output-file.js';
import type { BatchReport } from './batch.js';
import { bytes, count, percent, seconds } from './format.js';
import { relativeErrorMaxAllowed, type Verification } from './verify.js';

/** The figures of a batch as every command prints them, [name, value]. */
export function describeBatch({ summary, hidden, verification }: BatchReport): [string, string][] {
  const undedupedBytes = summary.assignments * hidden * 2;
  const lines: [string, string][] = [
    ['tokens', `${count(summary.tokens)} in ${seconds(summary.seconds)}`],
    ['rate', `${count(summary.tokens / summary.seconds)} tokens/s`],
    [
      'token batches',
      `${count(summary.messagesSent)} sent; one message per (token, expert) would be ${count(summary.assignments)}`,
    ],
    [
      'row bytes',
      `${bytes(summary.bytesSent)} sent, ${bytes(summary.bytesReturned)} returned; dedup saved ${percent(1 - summary.bytesSent / undedupedBytes)} of ${bytes(undedupedBytes)}`,
    ],
    [
      'balancedness',
      `${summary.balancedness.first.toFixed(3)} in the first tenth, ${summary.balancedness.last.toFixed(3)} in the last`,
    ],
    ['time over chunks', phases(summary)],
    ['routers', summary.routers.map(describeRouter).join(', ')],
  ];
  if (summary.droppedRows > 0) lines.push(['dropped rows', count(summary.droppedRows)]);
  if (summary.retries > 0) {
    const text = `${count(summary.retries)} token batches, ${count(summary.failedOverRows)} rows of experts`;
    lines.push(['sent again', text]);
  }
  if (summary.nonFiniteTokens > 0)
    lines.push(['tokens with NaN or infinity', count(summary.nonFiniteTokens)]);
  if (summary.nonFiniteOutputs > 0)
    lines.push(['answers with NaN or infinity', count(summary.nonFiniteOutputs)]);
  if (verification) lines.push(['verified', describeVerification(verification)]);
  return lines;
}

/** Seconds over all chunks; the phases of different chunks overlap. Transport is the exchange without what the worker did. */
export function phaseSeconds({ timings }: BatchSummary): Record<string, number> {
  return {
    norm: timings.normSeconds,
    gate: timings.gateSeconds,
    group: timings.groupSeconds,
    transport: Math.max(0, timings.exchangeSeconds - timings.computeSeconds - timings.queueSeconds),
    queue: timings.queueSeconds,
    compute: timings.computeSeconds,
    combine: timings.combineSeconds,
  };
}

function describeRouter({ name, tokens, transport, lanes }: BatchSummary['routers'][number]): string {
  return `${name} ${count(tokens)} tokens over ${transport} (${lanes})`;
}

function phases(summary: BatchSummary): string {
  return Object.entries(phaseSeconds(summary))
    .map(([name, value]) => `${name} ${seconds(value)}`)
    .join(', ');
}

function describeVerification(verification: Verification): string {
  const { verified, tokens, relativeError, relativeErrorMax, choicesChecked, choicesWrong } = verification;
  const { weightsWrong, nonFiniteInputs, nonFiniteOutputs } = verification;
  const parts = [
    `${verified ? 'yes' : 'NO'}: relative error ${relativeError.toExponential(2)} (allowed ${Number(verification.relativeErrorAllowed.toPrecision(2))}) over ${tokens} tokens`,
  ];
  if (!(relativeErrorMax <= relativeErrorMaxAllowed))
    parts.push(`${relativeErrorMax.toExponential(2)} of the worst (allowed ${relativeErrorMaxAllowed})`);
  if (choicesChecked > 0)
    parts.push(`${choicesChecked - choicesWrong} of ${choicesChecked} gate choices equal`);
  if (weightsWrong > 0) parts.push(`${weightsWrong} gate weights wrong`);
  if (nonFiniteInputs > 0) parts.push(`${nonFiniteInputs} left out that held NaN or infinity`);
  if (nonFiniteOutputs > 0) parts.push(`${nonFiniteOutputs} left out that overflowed`);
  return parts.join(', ');
}

/** Two columns, names aligned, as lines. */
export function formatFigures(lines: readonly [string, string][]): string {
  const width = Math.max(...lines.map(([name]) => name.length));
  return lines.map(([name, value]) => `${name.padEnd(width)}  ${value}\n`).join('');
}

/** Where a command reports: to standard error if standard output takes one of its outputs. */
export function reportStream(...outputs: (string | null)[]): NodeJS.WriteStream {
  return outputs.some(isStandardOutput) ? process.stderr : process.stdout;
}

/** The figures of a batch for programs; `verified` is null if it was not verified. */
export function batchJson({ summary, hidden, verification }: BatchReport) {
  return {
    verified: verification?.verified ?? null,
    relativeError: verification?.relativeError ?? null,
    tokens: summary.tokens,
    seconds: summary.seconds,
    tokensPerSecond: summary.tokens / summary.seconds,
    messages: { sent: summary.messagesSent, ungrouped: summary.assignments },
    bytes: {
      sent: summary.bytesSent,
      withoutDedup: summary.assignments * hidden * 2,
      returned: summary.bytesReturned,
    },
    balancedness: summary.balancedness,
    phaseSeconds: phaseSeconds(summary),
    droppedRows: summary.droppedRows,
    retries: summary.retries,
    failedOverRows: summary.failedOverRows,
    nonFiniteTokens: summary.nonFiniteTokens,
    nonFiniteOutputs: summary.nonFiniteOutputs,
    routers: summary.routers,
    layers: summary.layers,
    verification,
  };
}

/** A failed verification is a failure of the command, after everything is printed. */
export function assertVerified(verification: Verification | null): void {
  if (verification && !verification.verified) {
    const text = `the answers differ from the reference: relative error ${verification.relativeError}, of the worst token ${verification.relativeErrorMax}, ${verification.choicesWrong} gate choices and ${verification.weightsWrong} weights wrong`;
    throw new SwitchyardError('DATA_LOSS', text);
  }
}
