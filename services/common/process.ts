import { setDefaultHighWaterMark } from 'node:stream';
import { setFlagsFromString } from 'node:v8';
import { logVerbosity, setLogVerbosity } from '@grpc/grpc-js';

/**
 * Sets up a process of the cluster for messages of megabytes. Every gRPC server does it when it starts; a
 * program that merely uses the SDK is left as it is.
 *
 * grpc-js reads ahead, and queues, as many messages as the default of object streams (16), whatever their
 * size. One keeps the wire busy, and bounds a stalled stream to a message each way.
 *
 * grpc-js prints what it returns as errors too, beside the JSON lines of the log.
 *
 * V8 collects the whole heap whenever as many bytes of buffers were allocated as the heap is large: with a heap
 * of 10 MB, twenty times a second at full load, which takes half of the process's CPU time. A heap that may grow
 * elevenfold between collections leaves the short-lived buffers to the cheap young collections.
 */
export function prepareProcess(): void {
  setDefaultHighWaterMark(true, 1);
  setLogVerbosity(logVerbosity.NONE);
  setFlagsFromString('--heap-growing-percent=1000');
}
