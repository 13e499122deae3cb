/** The TypeScript SDK: `SwitchyardClient` and what it takes, gives and throws. */
export { type ErrorCode, SwitchyardError } from '../common/errors.js';
export type { ClusterDescription } from '../common/generated/switchyard/v1/ClusterDescription.js';
export type { ModelDescription } from '../common/generated/switchyard/v1/ModelDescription.js';
export { type ConnectOptions, type ForwardOptions, SwitchyardClient, type TlsOptions } from './client.js';
export type { AnswerChunk, ForwardCall, RoutingRows, RowsSink, TokenIds } from './forward.js';
export type { Session, SessionBatchOptions, SessionOptions, SessionResult } from './session.js';
export { type FileRows, type ForwardInput, type RowsReader, rowsInFile, rowsInMemory } from './source.js';
export type { BatchSummary } from './summary.js';
