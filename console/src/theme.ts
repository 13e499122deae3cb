import { useEffect, useState } from 'preact/hooks';

const themes = ['system', 'light', 'dark'] as const;
export type Theme = (typeof themes)[number];

const key = 'switchyard-theme';
const dark = matchMedia('(prefers-color-scheme: dark)');

function show(theme: Theme): void {
  const isDark = theme === 'dark' || (theme === 'system' && dark.matches);
  document.documentElement.dataset.theme = isDark ? 'dark' : 'light';
}

const isShown = () => document.documentElement.dataset.theme ?? '';

const read = (): Theme => themes.find((one) => one === localStorage.getItem(key)) ?? 'system';

show(read());

/** The colours that are used, by the system's wish or the user's, and the next choice. */
export function useTheme(): { theme: Theme; shown: string; next: () => void } {
  const [theme, setTheme] = useState<Theme>(read);
  const [shown, setShown] = useState(isShown);
  useEffect(() => {
    const apply = () => {
      show(theme);
      setShown(isShown());
    };
    apply();
    dark.addEventListener('change', apply);
    return () => dark.removeEventListener('change', apply);
  }, [theme]);
  const next = () => {
    const chosen = themes[(themes.indexOf(theme) + 1) % themes.length]!;
    localStorage.setItem(key, chosen);
    setTheme(chosen);
  };
  return { theme, shown, next };
}

/** The value of a colour as CSS has it now. */
export const colour = (name: string) =>
  getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
