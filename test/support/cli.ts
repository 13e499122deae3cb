import { spawn } from 'node:child_process';
import { commandLine } from '../../native/locate.js';

export interface CliResult {
  status: number | null;
  stdout: string;
  stderr: string;
}

/** Runs `switchyard` from dist/ with these arguments, without a terminal, to its end. */
export function switchyard(
  args: readonly string[],
  environment: Record<string, string> = {},
): Promise<CliResult> {
  const program = commandLine();
  const child = spawn(process.execPath, [program, ...args], {
    env: { ...process.env, ...environment },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  const result: CliResult = { status: null, stdout: '', stderr: '' };
  child.stdout.on('data', (data) => {
    result.stdout += data;
  });
  child.stderr.on('data', (data) => {
    result.stderr += data;
  });
  return new Promise((resolve) => {
    child.once('close', (status) => resolve({ ...result, status }));
  });
}
