import { workerData } from 'node:worker_threads';
import { type HashJob, hashBlocks } from './hash-blocks.js';

// The program of the threads that `digestOf` starts.
hashBlocks(workerData as HashJob);
